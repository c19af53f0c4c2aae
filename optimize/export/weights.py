"""Lays the weights of all graphs into one safetensors file, each storage once.

The tensors are streamed: no copy of a weight is made, and the place of each is known before the
first byte is written.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from optimize.ir.torch_engine import DTYPE_NAMES
from optimize.runtime.tensors import tensors_header

WEIGHTS_FILE = "weights.safetensors"

ALIGNMENT = 64
"""Bytes; the width of a cache line and of the widest vector registers."""

STORED_NAMES = {**DTYPE_NAMES, torch.int8: "int8", torch.uint8: "uint8"}
"""PyTorch's dtypes → their names in the runtime, of everything that a weight can be."""


@dataclass(frozen=True)
class Place:
    """Where the bytes of a weight lie: `length` bytes at `offset` of `file`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    length: int
    file: str = WEIGHTS_FILE


@dataclass(frozen=True)
class Layout:
    """The weights file before it is written.

    Attributes:
        header: the length field and the JSON header.
        places: weight name → place; tied weights share one.
        tensors: the tensors to write after the header, in order.
        names: what they are called in the file.
    """

    header: bytes
    places: Mapping[str, Place]
    tensors: tuple[torch.Tensor, ...]
    names: tuple[str, ...]

    def holds(self, name: str, weight: torch.Tensor) -> bool:
        """Whether the file has this very weight under this name."""
        place = self.places.get(name)
        if place is None or place.dtype != _real(weight).dtype:
            return False
        kept = self._by_name[place.name]
        return bool(_identity(_real(weight), name) == _identity(kept, place.name))

    @cached_property
    def _by_name(self) -> Mapping[str, torch.Tensor]:
        return dict(zip(self.names, self.tensors, strict=True))

    def chunks(self) -> Iterator[memoryview]:
        """The bytes of the file, without copying weights that are contiguous on the CPU."""
        yield memoryview(self.header)
        for tensor in self.tensors:
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            if flat.numel():
                yield flat.view(torch.uint8).numpy().data


def layout_weights(weights: Mapping[str, torch.Tensor], used: Iterable[str]) -> Layout:
    """Decides where each used weight goes; the same weights give the same bytes.

    Complex tensors are stored as real ones with a last dimension of 2. Tensors whose size is a
    multiple of 64 bytes come first, so that nearly all start on one.
    """
    weights = {name: _real(weights[name]) for name in set(used)}
    first: dict[Any, str] = {}
    owner: dict[str, str] = {}
    for name in sorted(weights):
        owner[name] = first.setdefault(_identity(weights[name], name), name)
    # Within the rest, wide dtypes come first: the format aligns numbers to their own size.
    order = sorted(
        set(owner.values()),
        key=lambda n: (
            (0, n) if _bytes(weights[n]) % ALIGNMENT == 0 else (9 - weights[n].itemsize, n)
        ),
    )
    header = tensors_header(
        [(n, STORED_NAMES[weights[n].dtype], tuple(weights[n].shape)) for n in order], ALIGNMENT
    )
    offsets: dict[str, int] = {}
    position = len(header)
    for name in order:
        offsets[name] = position
        position += _bytes(weights[name])
    places = {
        name: Place(
            name=kept,
            dtype=weights[kept].dtype,
            shape=tuple(weights[kept].shape),
            offset=offsets[kept],
            length=_bytes(weights[kept]),
        )
        for name, kept in owner.items()
    }
    return Layout(header, places, tuple(weights[name] for name in order), tuple(order))


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """A complex tensor as a real one with a last dimension of 2; the same memory."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _identity(tensor: torch.Tensor, name: str) -> Any:
    """Equal for weights that are the same memory read the same way."""
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return name
    return (
        str(tensor.device),
        tensor.data_ptr(),
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
    )

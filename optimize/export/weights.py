"""Lays the weights of all graphs into one safetensors file, each storage once.

The header is written by hand because the tensors are streamed: no copy of a weight is made, and
the place of each is known before the first byte is written.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

WEIGHTS_FILE = "weights.safetensors"

ALIGNMENT = 64
"""Bytes; the width of a cache line and of the widest vector registers."""

SAFETENSORS_DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


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
    """

    header: bytes
    places: Mapping[str, Place]
    tensors: tuple[torch.Tensor, ...]

    def chunks(self) -> Iterator[memoryview]:
        """The bytes of the file, without copying weights that are contiguous on the CPU."""
        yield memoryview(self.header)
        for tensor in self.tensors:
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            if flat.numel():
                yield memoryview(flat.view(torch.uint8).numpy())


def layout_weights(weights: Mapping[str, torch.Tensor], used: Iterable[str]) -> Layout:
    """Decides where each used weight goes; the same weights give the same bytes.

    Tensors whose size is a multiple of 64 bytes come first, so that nearly all start on one.
    """
    first: dict[Any, str] = {}
    owner: dict[str, str] = {}
    for name in sorted(set(used)):
        owner[name] = first.setdefault(_identity(weights[name], name), name)
    order = sorted(set(owner.values()), key=lambda n: (_bytes(weights[n]) % ALIGNMENT > 0, n))
    # The format wants numbers aligned to their own size, so wide dtypes precede narrow ones.
    order.sort(
        key=lambda n: (
            _bytes(weights[n]) % ALIGNMENT > 0,
            -weights[n].element_size() if _bytes(weights[n]) % ALIGNMENT else 0,
        )
    )
    entries: dict[str, Any] = {}
    position = 0
    for name in order:
        tensor = weights[name]
        end = position + _bytes(tensor)
        entries[name] = {
            "dtype": SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    places = {
        name: Place(
            name=kept,
            dtype=weights[kept].dtype,
            shape=tuple(weights[kept].shape),
            offset=len(header) + entries[kept]["data_offsets"][0],
            length=_bytes(weights[kept]),
        )
        for name, kept in owner.items()
    }
    return Layout(header, places, tuple(weights[name] for name in order))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _identity(tensor: torch.Tensor, name: str) -> Any:
    """Equal for weights that are the same memory read the same way."""
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return name
    return (str(tensor.device), tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())

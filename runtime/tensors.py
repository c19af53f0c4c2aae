"""Reads a safetensors file from verified bytes, without copying a tensor.

Stricter than the format: no duplicate names, no names that look like paths, and caps on the header
and the number of tensors.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.runtime.errors import CorruptBundle, UnsafeBundle

MAX_HEADER_BYTES = 8 * 2**20
MAX_TENSORS = 20_000
MAX_RANK = 16
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/+-]{0,499}")

ITEM_DTYPES: Mapping[str, tuple[str, str]] = {
    "F64": ("float64", "float64"),
    "F32": ("float32", "float32"),
    "F16": ("float16", "float16"),
    "BF16": ("bfloat16", "uint16"),
    "I64": ("int64", "int64"),
    "I32": ("int32", "int32"),
    "I16": ("int16", "int16"),
    "I8": ("int8", "int8"),
    "U8": ("uint8", "uint8"),
    "BOOL": ("bool", "bool"),
}
"""Name in the file → (our dtype, numpy dtype of the stored numbers)."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file.

    Attributes:
        dtype: our name of it; `bfloat16` is stored as uint16 bit patterns.
        array: a view of the file's bytes.
        offset: of the first byte, from the start of the file.
    """

    dtype: str
    array: NDArray[Any]
    offset: int


def read_tensors(data: NDArray[np.uint8], file: str) -> dict[str, StoredTensor]:
    """Views of every tensor.

    Args:
        data: [size], the whole file.
        file: its name, for messages.
    Raises:
        CorruptBundle: the file is not well formed.
        UnsafeBundle: the header is larger than the caps allow, or a name looks like a path.
    """
    header = _header(data, file)
    start = len(header[1]) + 8
    entries = header[0]
    if len(entries) > MAX_TENSORS:
        raise UnsafeBundle(f"{file}: found {len(entries)} tensors, expected at most {MAX_TENSORS}")
    spans: list[tuple[int, int]] = []
    tensors: dict[str, StoredTensor] = {}
    for name, entry in entries.items():
        begin, end, dtype, stored, shape = _entry(name, entry, file)
        if end - begin != int(np.prod(shape, dtype=object)) * np.dtype(stored).itemsize:
            raise CorruptBundle(
                f"{file}: found {end - begin} bytes for tensor {name!r}, "
                f"expected {dtype} {list(shape)}"
            )
        if start + end > data.size:
            raise CorruptBundle(f"{file}: found tensor {name!r} ending after the file")
        spans.append((begin, end))
        raw = data[start + begin : start + end]
        tensors[name] = StoredTensor(dtype, raw.view(stored).reshape(shape), start + begin)
    _check_tiling(sorted(spans), data.size - start, file)
    return tensors


def tensors_header(tensors: Sequence[tuple[str, str, tuple[int, ...]]], align: int = 64) -> bytes:
    """The start of a safetensors file whose tensors (name, dtype, shape) follow in this order.

    It is padded to a multiple of `align` bytes. Wide dtypes must come before narrow ones, or all
    sizes be multiples of the widest: the format aligns every tensor to its own item size.
    """
    names = {dtype: (code, np.dtype(stored)) for code, (dtype, stored) in ITEM_DTYPES.items()}
    entries: dict[str, Any] = {}
    position = 0
    for name, dtype, shape in tensors:
        code, stored = names[dtype]
        end = position + int(np.prod(shape, dtype=np.int64)) * stored.itemsize
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % align)
    return len(text).to_bytes(8, "little") + text


def _header(data: NDArray[np.uint8], file: str) -> tuple[dict[str, Any], bytes]:
    if data.size < 8:
        raise CorruptBundle(f"{file}: found {data.size} bytes, expected a safetensors header")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > MAX_HEADER_BYTES:
        raise UnsafeBundle(
            f"{file}: found a header of {length} bytes, expected at most {MAX_HEADER_BYTES}"
        )
    if 8 + length > data.size:
        raise CorruptBundle(f"{file}: found a header of {length} bytes that ends after the file")
    raw = data[8 : 8 + length].tobytes()
    entries = strict_json(raw, file)
    if not isinstance(entries, dict):
        raise CorruptBundle(f"{file}: found a header that is no object")
    entries.pop("__metadata__", None)
    return entries, raw


def strict_json(raw: bytes, file: str) -> Any:
    """Parses JSON, refusing what other readers would understand differently.

    Raises:
        CorruptBundle: not UTF-8, duplicate keys, NaN, numbers too long, nested too deeply.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in pairs:
            if key in found:
                raise ValueError(f"the key {key!r} twice")
            found[key] = item
        return found

    def refuse(number: str) -> Any:
        raise ValueError(f"the number {number}")

    try:
        return json.loads(raw.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError as error:
        raise CorruptBundle(f"{file}: found JSON nested too deeply; export it again") from error
    except ValueError as error:
        raise CorruptBundle(
            f"{file}: found {str(error)[:200]}, expected strict JSON; export it again"
        ) from error


def _entry(name: str, entry: Any, file: str) -> tuple[int, int, str, str, tuple[int, ...]]:
    if not _NAME.fullmatch(name) or ".." in name or "//" in name:
        raise UnsafeBundle(f"{file}: found tensor name {name[:100]!r}, expected a plain name")
    whole = isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}
    if not whole or not isinstance(entry["dtype"], str) or entry["dtype"] not in ITEM_DTYPES:
        raise CorruptBundle(
            f"{file}: found a malformed entry for tensor {name!r}, "
            f"expected shape, data_offsets and a dtype of {', '.join(ITEM_DTYPES)}"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (
        _naturals(shape) and _naturals(offsets) and len(offsets) == 2 and len(shape) <= MAX_RANK
    ):
        raise CorruptBundle(f"{file}: found a malformed shape or place for tensor {name!r}")
    if offsets[0] > offsets[1]:
        raise CorruptBundle(f"{file}: found tensor {name!r} ending before it begins")
    return offsets[0], offsets[1], *ITEM_DTYPES[entry["dtype"]], tuple(shape)


def _naturals(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(
        type(number) is int and 0 <= number < 2**63 for number in numbers
    )


def _check_tiling(spans: list[tuple[int, int]], size: int, file: str) -> None:
    """No hole, no overlap, no trailing byte: nothing can hide in the file."""
    position = 0
    for begin, end in spans:
        if begin != position:
            raise CorruptBundle(
                f"{file}: found a hole or an overlap at byte {position} of the data"
            )
        position = end
    if position != size:
        raise CorruptBundle(f"{file}: found {size - position} bytes that belong to no tensor")

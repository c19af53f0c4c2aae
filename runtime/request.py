"""Checks a request against a signature before any engine sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.runtime.errors import RuntimeInputError
from optimize.runtime.loop import Input, Loop, Noise, Signature, size_of
from optimize.runtime.philox import MAX_SEED


@dataclass(frozen=True)
class CheckedRequest:
    """A request that fits: arrays by field, the engine dtype of each, named sizes, the seed."""

    arrays: dict[str, NDArray[Any]]
    dtypes: dict[str, str]
    sizes: dict[str, int]
    seed: int


def check_request(
    signature: Signature, loop: Loop, request: Mapping[str, Any], seed: int | None
) -> CheckedRequest:
    """Checks names, dtypes, shapes and values, and fills in defaults.

    Args:
        signature: what is allowed.
        loop: its noise slots are optional fields, too.
        request: field name → array or number; named sizes may be given, as in `batch=4`.
        seed: needed when a noise is not given as an array.
    Raises:
        RuntimeInputError: with the field, what was found, what was expected.
    """
    fields: dict[str, Input | Noise] = {item.name: item for item in signature.inputs}
    fields.update({noise.name: noise for noise in loop.noise})
    given = {name: item for name, item in request.items() if item is not None}
    sizes = _given_sizes(signature, given)
    unknown = sorted(set(given) - set(fields) - set(signature.dimensions))
    if unknown:
        names = [*fields, "seed", *signature.dimensions]
        raise RuntimeInputError(
            f"request: found unknown field {unknown[0]!r}, expected some of {', '.join(names)}"
        )
    arrays = {name: _as_array(fields[name], item) for name, item in given.items() if name in fields}
    filled = [
        item for item in signature.inputs if item.name not in arrays and item.default is not None
    ]
    known = {*arrays, *(item.name for item in filled)}
    missing = [item.name for item in signature.inputs if item.name not in known]
    if missing:
        expected = ", ".join(describe(item) for item in signature.inputs)
        raise RuntimeInputError(f"request: {missing[0]!r} is missing, expected {expected}")
    for name, array in arrays.items():
        _bind_sizes(fields[name], array, sizes)
    for name, (low, high) in signature.dimensions.items():
        size = sizes.setdefault(name, max(1, low))
        if not low <= size <= high:
            raise RuntimeInputError(
                f"{name}: found {size}, expected a size in [{low}, {high}]; "
                "split the request or export again with a wider range"
            )
    for item in filled:
        shape = tuple(size_of(dimension, sizes) for dimension in item.shape)
        arrays[item.name] = np.full(shape, item.default, numpy_dtype(item.dtype))
    for name, array in arrays.items():
        arrays[name] = _fit_shape(fields[name], array, sizes)
        _check_values(fields[name], arrays[name], sizes)
    return CheckedRequest(
        arrays=arrays,
        dtypes={name: fields[name].dtype for name in arrays},
        sizes=sizes,
        seed=_check_seed(seed, [noise.name for noise in loop.noise if noise.name not in arrays]),
    )


def describe(item: Input | Noise) -> str:
    """A field as a user reads it: `class_labels int64 [batch]`."""
    return f"{item.name} {item.dtype} [{', '.join(map(str, field_shape(item)))}]"


def field_shape(item: Input | Noise) -> tuple[int | str, ...]:
    """The shape of a field as a request gives it: noise that has steps has one row for each."""
    steps = item.steps if isinstance(item, Noise) else None
    return item.shape if steps is None else (steps, *item.shape)


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype a request field is given in; float32 for bfloat16, which numpy lacks."""
    return np.dtype("float32" if dtype == "bfloat16" else dtype)


def _given_sizes(signature: Signature, given: Mapping[str, Any]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name in signature.dimensions:
        if name in given:
            if isinstance(given[name], bool) or not isinstance(given[name], (int, np.integer)):
                raise RuntimeInputError(
                    f"{name}: found {given[name]!r}, expected a whole number of samples"
                )
            sizes[name] = int(given[name])
    return sizes


def _as_array(item: Input | Noise, given: Any) -> NDArray[Any]:
    """The field as a contiguous little-endian array of its own dtype; never a silent cast."""
    expected = numpy_dtype(item.dtype)
    if isinstance(given, np.ma.MaskedArray):
        raise RuntimeInputError(
            f"{item.name}: found a masked array, whose mask would be lost; "
            "fill it first with .filled(value)"
        )
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise RuntimeInputError(
            f"{item.name}: found lists of unequal lengths, expected {describe(item)}; ask for "
            "those of one length together"
        ) from error
    if isinstance(given, (bool, int, float)) or (
        isinstance(given, (list, tuple)) and len(given) > 0
    ):
        # Plain Python numbers carry no dtype of their own: integers may stand for floats.
        plain = array.dtype.kind in ("i", "f", "b")
        if plain and (array.dtype.kind == expected.kind or expected.kind == "f"):
            return np.ascontiguousarray(array.astype(expected)).reshape(array.shape)
    if array.dtype.kind not in "biuf":
        raise RuntimeInputError(
            f"{item.name}: found {type(given).__name__} of dtype {array.dtype}, "
            f"expected {describe(item)}"
        )
    if not array.dtype.isnative:
        raise RuntimeInputError(
            f"{item.name}: found big-endian {array.dtype.str}, expected native byte order; "
            "convert it with array.astype(array.dtype.newbyteorder('='))"
        )
    if array.dtype != expected:
        raise RuntimeInputError(
            f"{item.name}: found dtype {array.dtype}, expected {describe(item)}; "
            f"convert it with array.astype('{expected}')"
        )
    return np.ascontiguousarray(array).reshape(array.shape)


def _bind_sizes(item: Input | Noise, array: NDArray[Any], sizes: dict[str, int]) -> None:
    """Learns named sizes from arrays of full rank."""
    if array.ndim != len(field_shape(item)):
        return
    for dimension, size in zip(field_shape(item), array.shape, strict=True):
        if isinstance(dimension, str) and "*" not in dimension:
            sizes.setdefault(dimension, size)


def _fit_shape(item: Input | Noise, array: NDArray[Any], sizes: dict[str, int]) -> NDArray[Any]:
    """The array at its full shape; a single number is repeated for the whole batch."""
    expected = tuple(size_of(dimension, sizes) for dimension in field_shape(item))
    if array.ndim == 0 and len(expected) <= 1:
        return np.full(expected, array)
    if array.shape != expected:
        raise RuntimeInputError(
            f"{item.name}: found shape {list(array.shape)}, expected {describe(item)}"
            + (f" with {', '.join(f'{k}={v}' for k, v in sizes.items())}" if sizes else "")
        )
    return array


def _check_values(item: Input | Noise, array: NDArray[Any], sizes: dict[str, int]) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        index = tuple(int(position) for position in np.argwhere(~np.isfinite(array))[0])
        raise RuntimeInputError(
            f"{item.name}: found {array[index]} at index {list(index)}, expected finite values"
        )
    low = item.low if isinstance(item, Input) else None
    high = item.high if isinstance(item, Input) else None
    if isinstance(item, Input) and item.at_most is not None:
        high = min(sizes[item.at_most], high or sizes[item.at_most])
    if array.size and (low is not None or high is not None):
        smallest, largest = array.min(), array.max()
        if (low is not None and smallest < low) or (high is not None and largest > high):
            raise RuntimeInputError(
                f"{item.name}: found values in [{smallest}, {largest}], "
                f"expected values in [{low}, {high}]"
            )
    excluded = item.excluded if isinstance(item, Input) else None
    if excluded is not None and (array == excluded).any():
        index = tuple(int(position) for position in np.argwhere(array == excluded)[0])
        raise RuntimeInputError(
            f"{item.name}: found {excluded} at index {list(index)}, expected other values: it "
            "stands for what is to be made, such as a mask; leave it out"
        )


def _check_seed(seed: Any, undrawn: list[str]) -> int:
    if seed is None:
        if undrawn:
            raise RuntimeInputError(
                f"request: found neither `seed` nor {undrawn[0]!r}; give a seed to draw the "
                f"noise, or the array itself"
            )
        return 0
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise RuntimeInputError(f"seed: found {seed!r}, expected a whole number in [0, 2**64)")
    if not 0 <= int(seed) <= MAX_SEED:
        raise RuntimeInputError(f"seed: found {seed}, expected a whole number in [0, 2**64)")
    return int(seed)

"""bfloat16 for numpy, which lacks it: the upper half of a float32, rounded to nearest even."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_bits(array: NDArray[Any]) -> NDArray[np.uint16]:
    """Rounds to bfloat16; NaN stays NaN. Returns the 16-bit patterns, shape of `array`."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    quiet = ((bits >> np.uint32(16)) | np.uint32(0x40)).astype(np.uint16)
    return np.where(np.isnan(bits.view(np.float32)), quiet, rounded).reshape(np.shape(array))


def from_bits(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 numbers of bfloat16 bit patterns, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)

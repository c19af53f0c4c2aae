"""Counter-based random numbers that every backend and every language can reproduce.

The bits are Philox4x64-10 (Salmon et al., 2011), keyed by (seed, slot) with the counter
(block, 0, step, sample): any number can be made without making the ones before it, so a run can be
resumed, and sample i of a batch does not depend on the batch size. Normal numbers come from the
Box-Muller transform in float64, not from a library's sampler whose stream may change.
"""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

MAX_SEED = 2**64 - 1


def slot_key(slot: str) -> int:
    """The 64-bit key of a named noise slot: the first eight bytes of its SHA-256, little endian."""
    return int.from_bytes(hashlib.sha256(slot.encode()).digest()[:8], "little")


def uniform(seed: int, slot: str, step: int, sample: int, count: int) -> NDArray[np.float64]:
    """Draws [count] float64 numbers in (0, 1), 53 bits each.

    Args:
        seed: in [0, 2**64).
        slot: name of the noise slot.
        step: loop step, >= 0.
        sample: index in the batch, >= 0.
        count: how many numbers.
    """
    generator = np.random.Philox(
        counter=np.array([0, 0, step, sample], dtype=np.uint64),
        key=np.array([seed, slot_key(slot)], dtype=np.uint64),
    )
    bits = generator.random_raw(count)
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(seed: int, slot: str, step: int, sample: int, count: int) -> NDArray[np.float64]:
    """Draws [count] float64 standard normal numbers; pairs share one Box-Muller transform."""
    half = (count + 1) // 2
    numbers = uniform(seed, slot, step, sample, 2 * half)
    radius = np.sqrt(-2.0 * np.log(numbers[:half]))
    angle = 2.0 * np.pi * numbers[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


DRAWS: Mapping[str, Callable[..., NDArray[np.float64]]] = {"normal": normal, "uniform": uniform}
"""Name of a distribution → what draws from it."""


def batch(
    seed: int, slot: str, step: int, shape: tuple[int, ...], distribution: str = "normal"
) -> NDArray[np.float64]:
    """Draws numbers of `shape`; the first dimension is the sample index."""
    count = int(np.prod(shape[1:], dtype=np.int64))
    draw = DRAWS[distribution]
    samples = [draw(seed, slot, step, sample, count) for sample in range(shape[0])]
    return np.stack(samples).reshape(shape) if samples else np.zeros(shape)

"""Sizes of the Triton kernel's blocks, by architecture, dtype and head dimension."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Blocks:
    """How one program of the kernel works.

    Attributes:
        queries: query rows of a program, a power of two, at least 16.
        keys: keys it reads at a time, a power of two, at least 16.
        warps: of 32 threads.
        stages: how many blocks of keys are under way at once.
    """

    queries: int
    keys: int
    warps: int
    stages: int


# (compute capability, bytes per number, padded head dimension). Chosen without a GPU, to spill no
# registers and to fit the shared memory; `autotune` in triton_tuning.py measures a new table.
TABLE: dict[tuple[int, int, int], Blocks] = {
    (80, 2, 64): Blocks(128, 64, 8, 3),
    (80, 2, 128): Blocks(128, 32, 8, 3),
    (80, 4, 64): Blocks(64, 32, 8, 2),
    (80, 4, 128): Blocks(64, 16, 8, 2),
    (90, 2, 64): Blocks(128, 128, 8, 3),
    (90, 2, 128): Blocks(128, 64, 8, 3),
    (90, 4, 64): Blocks(64, 32, 8, 2),
    (90, 4, 128): Blocks(64, 16, 8, 2),
    (100, 2, 64): Blocks(128, 128, 8, 3),
    (100, 2, 128): Blocks(128, 64, 8, 3),
    (100, 4, 64): Blocks(64, 32, 8, 2),
    (100, 4, 128): Blocks(64, 16, 8, 2),
    (120, 2, 64): Blocks(128, 64, 8, 2),
    (120, 2, 128): Blocks(128, 32, 8, 2),
    (120, 4, 64): Blocks(64, 32, 8, 2),
    (120, 4, 128): Blocks(64, 16, 8, 2),
}

SMALL_SHARED_MEMORY = (86, 87, 89)
"""Capabilities between 80 and 90 with about 100 KiB per multiprocessor, as 120 has."""


def padded(width: int) -> int:
    """The head dimension as the kernel computes it: the next power of two, at least 16."""
    return max(16, 1 << (width - 1).bit_length())


def blocks_of(capability: int, dtype: torch.dtype, width: int) -> Blocks:
    """The row of the table for a GPU.

    Args:
        capability: 10 * major + minor, at least 80.
        dtype: float16, bfloat16 or float32.
        width: head dimension, at most 128.
    Raises:
        ValueError: the GPU is older than that.
    """
    if capability < 80:
        raise ValueError(
            f"tile_attention: found a GPU of compute capability {capability / 10}, expected at "
            "least 8.0; call kernels.tile_attention.cpu.per_frame, which needs no Triton"
        )
    if capability in SMALL_SHARED_MEMORY:
        capability = 120
    known = max(number for number, *_ in TABLE if number <= capability)
    return TABLE[known, dtype.itemsize, max(64, padded(width))]

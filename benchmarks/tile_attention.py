"""The figures of sparse tile attention: kernel, pass, video models, processes.

    python benchmarks/tile_attention.py --out build/bench/tile_attention.json

Each part runs in a process of its own. `--part NAME` runs one of them and prints its figures.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from parts import Figures, run_parts

sys.path.insert(0, str(Path(__file__).resolve().parent))


def sparsity_table() -> Figures:
    """The paper's share of 128 x 128 blocks that fall away, nine rows."""
    import tile_attention_kernel

    return tile_attention_kernel.sparsity_table()


def cubins() -> Figures:
    """Registers, spills, shared memory and occupancy of the Triton kernel on four targets."""
    import tile_attention_kernel

    return tile_attention_kernel.cubins()


def cpu() -> Figures:
    """The CPU form against dense attention and FlexAttention."""
    import tile_attention_kernel

    return tile_attention_kernel.cpu()


def amdahl() -> Figures:
    """One denoiser call against the prediction from its attention alone, on both engines."""
    import tile_attention_video

    wan, digits = tile_attention_video.wan(), tile_attention_video.digits_amdahl()
    worst = max(wan["amdahl_error_wan"], digits["amdahl_error_moving_digits"])
    return {**wan, **digits, "amdahl_error_max": worst}


def moving_digits() -> Figures:
    """Masks and few steps against fifty dense eager steps, with the judge's word."""
    import tile_attention_video

    return tile_attention_video.moving_digits()


def parallel() -> Figures:
    """One, two and four processes."""
    import tile_attention_parallel

    return tile_attention_parallel.parallel()


PARTS: dict[str, Callable[[], Figures]] = {
    part.__name__: part for part in (sparsity_table, cubins, cpu, amdahl, moving_digits, parallel)
}


if __name__ == "__main__":
    run_parts(
        __doc__, "tile_attention", PARTS, ("torch", "onnxruntime", "diffusers", "numpy", "triton")
    )

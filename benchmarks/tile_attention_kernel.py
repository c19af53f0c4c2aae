"""What `tile_attention` gains without a GPU: time and memory on a CPU, sparsity, compiled kernels.

Run `python benchmarks/tile_attention_kernel.py` on a machine with nothing else to do: a few minutes
on two cores. Ratios are medians of those of interleaved runs, by the clock.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from optimize.kernels.tile_attention import tile_attention
from optimize.kernels.tile_attention.pattern import TilePattern, spread_references
from optimize.measure.timing import interleaved_seconds

TOKENS, HEADS, WIDTH = 512, 8, 64
CASES = {8: ((1, 2, 3, 4), 15), 24: ((3, 4, 6, 8, 12), 3)}
"""Frames → numbers of references, repeats."""

PUBLISHED = {
    (8, 4): 17.60, (8, 3): 29.88, (8, 2): 45.47, (8, 1): 64.38,
    (24, 12): 21.51, (24, 8): 40.30, (24, 6): 51.88, (24, 4): 64.98, (24, 3): 72.05,
}  # fmt: skip
"""Frames, references → sparsity in percent: blocks of 128, 3600 tokens per frame."""


def cpu() -> dict[str, Any]:
    """Time and memory against dense attention and compiled FlexAttention, float32, two threads.

    Runs in a process of its own, where nothing has set the number of threads yet.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, __file__, "--cpu"]
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(found.stdout.splitlines()[-1]))


def cpu_here() -> dict[str, Any]:
    """The measurement of `cpu` in this process."""
    torch.set_num_threads(2)
    compiled = torch.compile(flex_attention)
    rows = []
    for frames, (counts, repeats) in CASES.items():
        generator = torch.Generator().manual_seed(0)
        shape = (1, frames * TOKENS, HEADS, WIDTH)
        x = [torch.randn(shape, generator=generator).transpose(1, 2) for _ in range(3)]
        for count in counts:
            pattern = TilePattern(frames, TOKENS, spread_references(frames, count))
            mask = block_mask(pattern, "cpu")
            forms = {
                "dense": lambda x=x: scaled_dot_product_attention(*x),
                "tiled": _tiled(x, pattern),
                "flex": lambda x=x, mask=mask: compiled(*x, block_mask=mask),
            }
            seconds = interleaved_seconds(forms, repeats)
            rows.append(
                {
                    "frames": frames,
                    "references": count,
                    "density": pattern.density,
                    "seconds": {name: statistics.median(s) for name, s in seconds.items()},
                    "efficiency": ratio(seconds["dense"], seconds["tiled"]) * pattern.density,
                    "flex_ratio": ratio(seconds["flex"], seconds["tiled"]),
                    "memory_over_inputs": peak_bytes(forms["tiled"]) / sum(i.nbytes for i in x),
                    "scores_over_inputs": HEADS * pattern.length**2 * 4 / sum(i.nbytes for i in x),
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return {
        "cpu_efficiency_min": min(row["efficiency"] for row in rows),
        "flex_ratio_min": min(row["flex_ratio"] for row in rows),
        "peak_memory_over_inputs": max(row["memory_over_inputs"] for row in rows),
        "cpu": rows,
    }


def sparsity_table() -> dict[str, Any]:
    """The published block sparsities against ours, in percent."""
    rows = []
    for (frames, count), published in PUBLISHED.items():
        pattern = TilePattern(frames, 3600, spread_references(frames, count))
        ours = 100 * pattern.block_sparsity(128)
        rows.append({"frames": frames, "references": count, "published": published, "ours": ours})
    worst = max(abs(row["published"] - row["ours"]) for row in rows)
    return {"sparsity_table_error": worst, "sparsity": rows}


def cubins() -> dict[str, Any]:
    """Spills, registers, shared memory and occupancy of the Triton form for each architecture."""
    # Triton is needed for this part only.
    from optimize.kernels.tile_attention.triton_tuning import resource_table

    found = {name: vars(used) for name, used in resource_table().items()}
    return {"cubin_spills": sum(used["spill_bytes"] for used in found.values()), "cubins": found}


def block_mask(pattern: TilePattern, device: str) -> Any:
    """The same pairs as a mask of FlexAttention, for a video without text."""
    references = torch.zeros(pattern.frames, dtype=torch.bool, device=device)
    references[list(pattern.references)] = True
    frame = torch.arange(pattern.length, device=device) // pattern.tokens_per_frame
    is_global = references[frame]

    def allowed(batch: Any, head: Any, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        return (frame[row] == frame[column]) | is_global[row] | is_global[column]

    length = pattern.length
    return create_block_mask(allowed, None, None, length, length, device=device)


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over rounds of one time over the other."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def peak_bytes(run: Callable[[], object]) -> int:
    """The most memory a call holds at once beyond its inputs, its result included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    now = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    del kept
    return most


def _tiled(x: list[torch.Tensor], pattern: TilePattern) -> Callable[[], torch.Tensor]:
    references = list(pattern.references)
    return lambda: tile_attention(*x, pattern.frames, pattern.tokens_per_frame, references)


def main() -> None:
    if sys.argv[1:] == ["--cpu"]:
        with torch.inference_mode():
            print(json.dumps(cpu_here()))
    else:
        print(json.dumps(sparsity_table() | cubins() | cpu(), indent=2))


if __name__ == "__main__":
    main()

"""`tile_attention` on a GPU: is it right, and how fast is it against dense attention?

Run `python benchmarks/tile_attention_gpu.py` on a machine with a GPU; it prints JSON. Each shape is
first compared with the dense computation of the same pairs, then timed against dense attention,
FlexAttention with the same mask, and the roofline: the time its products and its memory traffic
take at the peak rates of the GPU.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from optimize.kernels.tile_attention import tile_attention
from optimize.kernels.tile_attention.cpu import per_frame
from optimize.kernels.tile_attention.pattern import TilePattern, spread_references
from optimize.kernels.tile_attention.reference import reference

sys.path.insert(0, str(Path(__file__).parent))
from tile_attention_kernel import block_mask

PEAKS = {80: (312e12, 2.0e12), 90: (989e12, 3.35e12), 100: (2250e12, 8.0e12), 120: (419e12, 1.8e12)}
"""Capability → dense bfloat16 operations and bytes per second: A100 80 GB, H100 SXM, B200 and
RTX 5090 by their data sheets."""

TOKENS_PER_FRAME = {8: 3600, 24: 4800}
"""Frames → tokens of each: 28,800 and 115,200 in all."""

COUNTS = {8: (1, 2, 3, 4), 24: (3, 6, 12)}
HEADS = 8
TOLERANCE = 1.6e-2
"""Two units in the last place of bfloat16 at 1."""


def check(device: str, forms: dict[str, Callable[..., torch.Tensor]]) -> float:
    """The largest difference from the reference, over odd sizes, with text and with masks.

    Raises:
        AssertionError: a form differs by more than the tolerance.
    """
    worst = 0.0
    for pattern in (TilePattern(4, 77, (0, 2), 33, 5), TilePattern(5, 40, (1,), 0, 7)):
        for width in (64, 96, 128):
            shape = (1, pattern.length, 2, width)
            x = [torch.randn(shape, device=device).bfloat16().transpose(1, 2) for _ in range(3)]
            hidden = torch.zeros(1, 1, 1, pattern.length, dtype=torch.bool, device=device)
            hidden[..., -3:] = True
            for mask in (None, ~hidden):
                expected = reference(*x, pattern, mask)
                for name, form in forms.items():
                    difference = (form(*x, pattern, mask) - expected).abs().max().item()
                    assert difference <= TOLERANCE, (name, pattern, width, difference)
                    worst = max(worst, difference)
    return worst


def op(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pattern: TilePattern,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The op with its arguments as a pattern."""
    p, references = pattern, list(pattern.references)
    return tile_attention(
        query, key, value, p.frames, p.tokens_per_frame, references, p.prefix, p.suffix, mask
    )


def roofline_ms(pattern: TilePattern, width: int, capability: int) -> float:
    """The least time for the kept pairs: products or memory traffic, whichever takes longer."""
    known = max((number for number in PEAKS if number <= capability), default=80)
    operations, bandwidth = PEAKS[known]
    products = 4 * HEADS * pattern.kept_pairs * width
    traffic = 4 * HEADS * pattern.length * width * 2
    return 1e3 * max(products / operations, traffic / bandwidth)


def times(frames: int, count: int, width: int, capability: int) -> dict[str, Any]:
    """Median milliseconds of each form at one shape, bfloat16, batch 1."""
    pattern = TilePattern(frames, TOKENS_PER_FRAME[frames], spread_references(frames, count))
    shape = (1, pattern.length, HEADS, width)
    x = [torch.randn(shape, device="cuda").bfloat16().transpose(1, 2) for _ in range(3)]
    mask = block_mask(pattern, "cuda")
    compiled = torch.compile(flex_attention)

    def dense() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return scaled_dot_product_attention(*x)

    forms: dict[str, Callable[[], Any]] = {
        "dense_flash": dense,
        "triton": lambda: op(*x, pattern),
        "per_frame": lambda: per_frame(*x, pattern),
        "flex": lambda: compiled(*x, block_mask=mask),
    }
    difference = (forms["triton"]() - forms["per_frame"]()).abs().max().item()
    assert difference <= TOLERANCE, (frames, count, width, difference)
    found = {
        name: triton.testing.do_bench(form, return_mode="median") for name, form in forms.items()
    }
    least = roofline_ms(pattern, width, capability)
    return {
        "rows": pattern.length,
        "frames": frames,
        "references": count,
        "width": width,
        "density": pattern.density,
        "milliseconds": found,
        "speedup_over_flash": found["dense_flash"] / found["triton"],
        "efficiency": found["dense_flash"] / found["triton"] * pattern.density,
        "flex_ratio": found["flex"] / found["triton"],
        "roofline_ms": least,
        "roofline_share": least / found["triton"],
    }


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("tile_attention_gpu: found no CUDA device, expected one")
    major, minor = torch.cuda.get_device_capability()
    with torch.inference_mode():
        worst = check("cuda", {"triton": op, "per_frame": per_frame})
        rows = [
            times(frames, count, width, 10 * major + minor)
            for frames, counts in COUNTS.items()
            for count in counts
            for width in (64, 128)
        ]
    device = torch.cuda.get_device_name()
    print(json.dumps({"device": device, "largest_difference": worst, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()

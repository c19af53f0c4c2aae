"""`tile_attention` in plain PyTorch: softmax over a mask of all pairs."""

import math

import torch

from optimize.kernels.tile_attention.pattern import TilePattern


def allowed_pairs(
    pattern: TilePattern, device: torch.device | None = None, rows: torch.Tensor | None = None
) -> torch.Tensor:
    """[rows, S] bool: whether the row sees the column.

    Args:
        rows: int64, on `device`, each in [0, S); None for all of them.
    """
    columns = torch.arange(pattern.length, device=device)
    rows = columns if rows is None else rows
    everywhere = torch.zeros(pattern.length, dtype=torch.bool, device=device)
    for start, stop in pattern.global_ranges:
        everywhere[start:stop] = True
    frame = (columns - pattern.prefix).div(pattern.tokens_per_frame, rounding_mode="floor")
    return (frame[rows, None] == frame) | everywhere[rows, None] | everywhere


def reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pattern: TilePattern,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention in float32 or float64, with all S x S scores in memory.

    A row whose mask hides every key is zero, as in `scaled_dot_product_attention`.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query.to(wide) @ key.to(wide).mT * scale
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = scores + mask
    scores = scores.masked_fill(~allowed_pairs(pattern, query.device), -math.inf)
    weights = scores.softmax(-1).masked_fill(scores.isneginf().all(-1, keepdim=True), 0)
    return (weights @ value.to(wide)).to(query.dtype)

"""`tile_attention` from dense attention: one call for the global rows, one per other frame."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from optimize.kernels.tile_attention.pattern import Range, TilePattern


def per_frame(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pattern: TilePattern,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attends frame by frame, with the keys [global rows | own frame].

    The global keys are copied once, into a buffer whose end each frame overwrites. A single call
    with the frames in the batch would copy them for every frame.
    """
    if pattern.is_dense:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    batch, heads, length, _ = query.shape
    result = query.new_empty(batch, length, heads, value.shape[3]).transpose(1, 2)
    ranges = pattern.global_ranges
    rows = scaled_dot_product_attention(
        joined(query, ranges), key, value, attn_mask=mask, scale=scale
    )
    position = 0
    for start, stop in ranges:
        result[:, :, start:stop] = rows[:, :, position : position + stop - start]
        position += stop - start
    first = pattern.frame_range(pattern.others[0])
    keys, values = (joined(item, (*ranges, first)) for item in (key, value))
    for frame in pattern.others:
        start, stop = pattern.frame_range(frame)
        keys[:, :, position:] = key[:, :, start:stop]
        values[:, :, position:] = value[:, :, start:stop]
        seen = None if mask is None else joined(mask.mT, (*ranges, (start, stop))).mT
        result[:, :, start:stop] = scaled_dot_product_attention(
            query[:, :, start:stop], keys, values, attn_mask=seen, scale=scale
        )
    return result


def joined(x: torch.Tensor, ranges: tuple[Range, ...]) -> torch.Tensor:
    """Copies ranges of the rows of [B, N, S, D] into one tensor."""
    return torch.cat([x[:, :, start:stop] for start, stop in ranges], dim=2)

"""`optimize::tile_attention`: attention of a video between some frames only."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from optimize.kernels.tile_attention.cpu import per_frame
from optimize.kernels.tile_attention.pattern import TilePattern, pattern_of


@torch.library.custom_op("optimize::tile_attention", mutates_args=())
def tile_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    frames: int,
    tokens_per_frame: int,
    references: Sequence[int],
    prefix: int = 0,
    suffix: int = 0,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Scaled dot product attention over S = prefix + frames * tokens_per_frame + suffix rows.

    The first and last rows are text, those between them the tokens of frame 0, of frame 1 and so
    on. Text and reference frames see everything and are seen by everything; the rows of any other
    frame see these and their own frame. With all frames as references, or all but one, it is
    `scaled_dot_product_attention` bit for bit.

    Args:
        query: [B, N, S, D], any float dtype.
        key: [B, N, S, D], dtype of `query`.
        value: [B, N, S, Dv], dtype of `query`.
        frames: F, at least 1.
        tokens_per_frame: at least 1.
        references: ascending, at least one, each in [0, F).
        prefix: text rows before the video.
        suffix: text rows after it.
        mask: [B or 1, N or 1, 1, S], bool (True: the key may be seen) or in the dtype of `query`
            (added to the scores), the same for every query row.
        scale: what the scores are multiplied by; None for 1 / sqrt(D).
    Returns:
        [B, N, S, Dv], dtype of `query`, with the memory layout of [B, S, N, Dv].
    Raises:
        ValueError: shapes, dtypes or the references do not fit.
    """
    pattern = _check(query, key, value, frames, tokens_per_frame, references, prefix, suffix, mask)
    result = per_frame(query, key, value, pattern, mask, scale)
    return result.transpose(1, 2).contiguous().transpose(1, 2)


@tile_attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    frames: int,
    tokens_per_frame: int,
    references: Sequence[int],
    prefix: int = 0,
    suffix: int = 0,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    _check(query, key, value, frames, tokens_per_frame, references, prefix, suffix, mask)
    batch, heads, length, _ = query.shape
    return query.new_empty(batch, length, heads, value.shape[3]).transpose(1, 2)


@register_flop_formula(torch.ops.optimize.tile_attention, get_raw=True)
def _flops(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    frames: int,
    tokens_per_frame: int,
    references: Sequence[int],
    prefix: int = 0,
    suffix: int = 0,
    *_: Any,
    **__: Any,
) -> int:
    """Both products over the kept pairs; the softmax is not counted."""
    pattern = pattern_of(frames, tokens_per_frame, references, prefix, suffix)
    batch, heads = query.shape[:2]
    return 2 * batch * heads * pattern.kept_pairs * (query.shape[3] + value.shape[3])


def _check(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    frames: int,
    tokens_per_frame: int,
    references: Sequence[int],
    prefix: int,
    suffix: int,
    mask: torch.Tensor | None,
) -> TilePattern:
    """The pattern, once everything fits."""
    pattern = pattern_of(frames, tokens_per_frame, references, prefix, suffix)
    if query.dim() != 4 or not query.dtype.is_floating_point:
        raise ValueError(
            f"tile_attention: found query of shape {list(query.shape)} and dtype {query.dtype}, "
            "expected [B, N, S, D] of a float dtype"
        )
    batch, heads, length, width = query.shape
    if length != pattern.length:
        raise ValueError(
            f"tile_attention: found {length} rows in query {list(query.shape)}, expected "
            f"prefix {prefix} + frames {frames} * tokens_per_frame {tokens_per_frame} + "
            f"suffix {suffix} = {pattern.length}"
        )
    _check_like("key", key, query.dtype, [batch, heads, length, width])
    value_width = value.shape[-1] if value.dim() == 4 else "Dv"
    _check_like("value", value, query.dtype, [batch, heads, length, value_width])
    if mask is not None:
        _check_mask(mask, query)
    return pattern


def _check_like(
    name: str,
    tensor: torch.Tensor,
    dtype: torch.dtype,
    shape: Sequence[int | torch.SymInt | str],
) -> None:
    if tensor.dtype != dtype:
        raise ValueError(
            f"tile_attention: found {name} of dtype {tensor.dtype}, expected {dtype} as query has"
        )
    fits = tensor.dim() == len(shape) and all(map(_may_equal, tensor.shape, shape))
    if not fits:
        raise ValueError(
            f"tile_attention: found {name} of shape {list(tensor.shape)}, expected {list(shape)}"
        )


def _check_mask(mask: torch.Tensor, query: torch.Tensor) -> None:
    if mask.dtype not in (torch.bool, query.dtype):
        raise ValueError(
            f"tile_attention: found mask of dtype {mask.dtype}, expected torch.bool or "
            f"{query.dtype} as query has"
        )
    batch, heads, length, _ = query.shape
    fits = mask.dim() == 4 and all(
        _may_equal(found, 1) or _may_equal(found, size)
        for found, size in zip(mask.shape[:2], (batch, heads), strict=True)
    )
    if not fits or mask.shape[2] != 1 or mask.shape[3] != length:
        raise ValueError(
            f"tile_attention: found mask of shape {list(mask.shape)}, expected [{batch} or 1, "
            f"{heads} or 1, 1, {length}]: a mask of keys, the same for every query row"
        )


def _may_equal(found: int | torch.SymInt, size: int | torch.SymInt | str) -> bool:
    # Sizes a request decides are compared when the op runs, not when it is traced.
    return not (isinstance(found, int) and isinstance(size, int)) or found == size

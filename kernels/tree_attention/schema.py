"""`optimize::tree_attention`: rows that are tried, over a cache that stays as it is."""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import register_flop_formula

from optimize.kernels.cached_attention.schema import check_attention, may_equal, rows_together


@torch.library.custom_op("optimize::tree_attention", mutates_args=())
def tree_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    lengths: torch.Tensor,
    sees: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention of S rows over the cached rows and over some of T further rows.

    A draft that tries several continuations of one prefix runs them side by side: each row sees the
    prefix and its own ancestors. Nothing is written into the caches, so nothing has to be undone.

    Args:
        query: [B, N, S, D], any float dtype.
        key: [B, G, T, D], G a divisor of N; the rows themselves and those tried before them.
        value: [B, G, T, Dv].
        key_cache: [B, G, L, D]; rows from lengths[b] on are not read.
        value_cache: [B, G, L, Dv].
        lengths: [B] int64, each in [0, L].
        sees: [S, T] bool, which of the T rows each row sees; at least one.
        scale: what the scores are multiplied by; None for 1 / sqrt(D).
    Returns:
        [B, N, S, Dv].
    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    _check(query, key, value, key_cache, value_cache, lengths, sees)
    longest = int(lengths.max())
    columns = torch.arange(longest, device=lengths.device)
    old = (columns < lengths[:, None])[:, None, None]  # [B, 1, 1, longest]
    batch, count = query.shape[0], query.shape[2]
    seen = torch.cat([old.expand(batch, 1, count, longest), sees.expand(batch, 1, *sees.shape)], -1)
    result = scaled_dot_product_attention(
        query,
        torch.cat([key_cache[:, :, :longest], key], 2),
        torch.cat([value_cache[:, :, :longest], value], 2),
        attn_mask=seen,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return rows_together(result)


@tree_attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    lengths: torch.Tensor,
    sees: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    _check(query, key, value, key_cache, value_cache, lengths, sees)
    return rows_together(query.new_empty(*query.shape[:3], value.shape[3]))


@register_flop_formula(torch.ops.optimize.tree_attention, get_raw=True)
def _flops(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: torch.Tensor,
    *_: Any,
    **__: Any,
) -> int:
    """Both products over a full cache and the further rows, which is the most that is needed."""
    batch, heads, count, width = query.shape
    rows = cache.shape[2] + key.shape[2]
    return 2 * batch * heads * count * rows * (width + value.shape[3])


def _check(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    lengths: torch.Tensor,
    sees: torch.Tensor,
) -> None:
    check_attention("tree_attention", query, key, value, key_cache, value_cache, lengths)
    expected = (query.shape[2], key.shape[2])
    fits = sees.dim() == 2 and all(map(may_equal, sees.shape, expected))
    if sees.dtype != torch.bool or not fits:
        raise ValueError(
            f"tree_attention: found sees of shape {list(sees.shape)} and dtype {sees.dtype}, "
            f"expected {list(expected)} bool"
        )

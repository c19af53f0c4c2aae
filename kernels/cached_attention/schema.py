"""`optimize::cached_attention`: one step of decoding with a key-value cache."""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import register_flop_formula


@torch.library.custom_op("optimize::cached_attention", mutates_args=())
def cached_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float | None = None,
    sees: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention of S new rows over the cached rows and themselves.

    Each sample has its own number of cached rows. The new keys and values are written behind them;
    new row i of sample b sees the rows up to lengths[b] + i, or what `sees` says.

    Args:
        query: [B, N, S, D], any float dtype.
        key: [B, G, S, D], G a divisor of N: heads in groups of N / G share keys and values.
        value: [B, G, S, Dv].
        key_cache: [B, G, L, D]; rows from lengths[b] on are not read.
        value_cache: [B, G, L, Dv].
        lengths: [B] int64, each in [0, L - S].
        scale: what the scores are multiplied by; None for 1 / sqrt(D).
        sees: [S, S] bool, whether new row i sees new row j, such as those of a tree see their
            ancestors; each sees itself. None for causal.
    Returns:
        [B, N, S, Dv], and the caches with the new rows.
    Raises:
        ValueError: shapes or dtypes do not fit, or a cache is full.
    """
    check_attention("cached_attention", query, key, value, key_cache, value_cache, lengths)
    _check_new(query, key, sees)
    count, capacity = query.shape[2], key_cache.shape[2]
    ends = lengths + count
    longest = int(ends.max())
    if longest > capacity:
        raise ValueError(
            f"cached_attention: found {longest} rows with the new ones, expected at most "
            f"{capacity}, the length of the cache"
        )
    rows = lengths[:, None] + torch.arange(count, device=lengths.device)
    keys, values = _written(key_cache, key, rows), _written(value_cache, value, rows)
    columns = torch.arange(longest, device=lengths.device)
    seen = columns <= rows[:, None, :, None]  # [B, 1, S, longest]
    if sees is not None:
        place = columns - lengths[:, None]  # [B, longest] of a column among the new rows
        among = sees[:, torch.clamp(place, 0, count - 1)].transpose(0, 1)  # [B, S, longest]
        old, new = place < 0, place < count
        seen = (old[:, None] | (among & new[:, None]))[:, None]
    result = scaled_dot_product_attention(
        query,
        keys[:, :, :longest],
        values[:, :, :longest],
        attn_mask=seen,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return rows_together(result), keys, values


def _written(cache: torch.Tensor, fresh: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A copy of the cache with the new rows in their places."""
    result = cache.clone(memory_format=torch.contiguous_format)
    samples = torch.arange(cache.shape[0], device=cache.device)[:, None]
    # Two index tensors around a slice: the indexed dimensions come first.
    result[samples, :, rows] = fresh.transpose(1, 2)
    return result


@cached_attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float | None = None,
    sees: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    check_attention("cached_attention", query, key, value, key_cache, value_cache, lengths)
    _check_new(query, key, sees)
    result = rows_together(query.new_empty(*query.shape[:3], value.shape[3]))
    return result, torch.empty_like(key_cache), torch.empty_like(value_cache)


def rows_together(attended: torch.Tensor) -> torch.Tensor:
    """[B, N, S, D] with the heads of a row side by side in memory, as other attention has them."""
    return attended.transpose(1, 2).contiguous().transpose(1, 2)


@register_flop_formula(torch.ops.optimize.cached_attention, get_raw=True)
def _flops(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: torch.Tensor,
    *_: Any,
    **__: Any,
) -> int:
    """Both products over a full cache, which is the most that a step can need."""
    batch, heads, count, width = query.shape
    return 2 * batch * heads * count * cache.shape[2] * (width + value.shape[3])


def _check_new(query: torch.Tensor, key: torch.Tensor, sees: torch.Tensor | None) -> None:
    count = query.shape[2]
    if not may_equal(key.shape[2], count):
        raise ValueError(
            f"cached_attention: found {key.shape[2]} new keys for {count} rows, expected as many"
        )
    if sees is not None and (sees.dtype != torch.bool or tuple(sees.shape) != (count, count)):
        raise ValueError(
            f"cached_attention: found sees of shape {list(sees.shape)} and dtype {sees.dtype}, "
            f"expected {[count, count]} bool"
        )


def check_attention(
    op: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """Checks shapes and dtypes of rows that attend to a cache and to new keys [B, G, T, D].

    Raises:
        ValueError: in the name of `op`.
    """
    if query.dim() != 4 or not query.dtype.is_floating_point:
        raise ValueError(
            f"{op}: found query of shape {list(query.shape)} and dtype {query.dtype}, "
            "expected [B, N, S, D] of a float dtype"
        )
    if lengths.dim() != 1 or lengths.dtype != torch.int64:
        raise ValueError(
            f"{op}: found lengths of shape {list(lengths.shape)} and dtype "
            f"{lengths.dtype}, expected [B] int64"
        )
    batch, heads, _, width = query.shape
    groups = key.shape[1] if key.dim() == 4 else 0
    if not groups or heads % groups:
        raise ValueError(
            f"{op}: found key of shape {list(key.shape)} for {heads} query heads, "
            "expected [B, G, T, D] with G a divisor of the query heads"
        )
    count, capacity, value_width = key.shape[2], key_cache.shape[2], value.shape[-1]
    for name, tensor, shape in (
        ("key", key, (batch, groups, count, width)),
        ("value", value, (batch, groups, count, value_width)),
        ("key_cache", key_cache, (batch, groups, capacity, width)),
        ("value_cache", value_cache, (batch, groups, capacity, value_width)),
    ):
        if tensor.dtype != query.dtype:
            raise ValueError(
                f"{op}: found {name} of dtype {tensor.dtype}, expected {query.dtype} as query has"
            )
        if tensor.dim() != 4 or not all(map(may_equal, tensor.shape, shape)):
            raise ValueError(
                f"{op}: found {name} of shape {list(tensor.shape)}, expected {list(shape)}"
            )


def may_equal(found: int | torch.SymInt, size: int | torch.SymInt) -> bool:
    """Whether two sizes can be equal: those a request decides are compared when the op runs."""
    return not (isinstance(found, int) and isinstance(size, int)) or found == size

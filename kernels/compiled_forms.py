"""The kernels as PyTorch functions that a compiler can take apart.

    forms = compiled_forms()
    result = forms["optimize::gather_rows"](x, index, dim)

An op's own implementation may loop over samples or look at values. These do neither, so that
TorchInductor makes one or a few loops of them; they give the numbers of the ops, up to rounding.
Where the reference or the form for CPUs is such a function, it is the one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from optimize.kernels.cached_attention.schema import rows_together
from optimize.kernels.solver_step.reference import reference as solver_step
from optimize.kernels.tile_attention.cpu import per_frame
from optimize.kernels.tile_attention.pattern import pattern_of


def compiled_forms() -> Mapping[str, Callable[..., Any]]:
    """Op name → a functional form of it, of the op's arguments."""
    return {
        "optimize::cached_attention": _cached_attention,
        "optimize::dynamic_threshold": _dynamic_threshold,
        "optimize::gather_rows": _gather_rows,
        "optimize::scatter_rows": _scatter_rows,
        "optimize::solver_step": solver_step,
        "optimize::tile_attention": _tile_attention,
        "optimize::tree_attention": _tree_attention,
    }


def _along(index: torch.Tensor, like: torch.Tensor, dim: int) -> torch.Tensor:
    """An index [B, K] in the shape of `like`, whose dimension `dim` has K elements."""
    shape = [1] * like.dim()
    shape[0], shape[dim] = index.shape
    return index.reshape(shape).expand(like.shape)


def _gather_rows(x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    dim = dim % x.dim()
    batch, count = index.shape
    shape = list(x.shape)
    shape[0] = batch
    wide = x.expand(shape)
    shape[dim] = count
    return torch.gather(wide, dim, _along(index, x.new_empty(shape), dim))


def _scatter_rows(
    cache: torch.Tensor, index: torch.Tensor, rows: torch.Tensor, dim: int
) -> torch.Tensor:
    dim = dim % cache.dim()
    return torch.scatter(cache, dim, _along(index, rows, dim), rows)


def _dynamic_threshold(x: torch.Tensor, ratio: float, max_value: float) -> torch.Tensor:
    ordered = x.abs().flatten(1).sort(1).values
    # The position of torch.quantile's linear interpolation.
    position = ratio * (ordered.shape[1] - 1)
    below = int(position)
    above = min(below + 1, ordered.shape[1] - 1)
    bound = torch.lerp(ordered[:, below], ordered[:, above], position - below)
    bound = bound.clamp(min=1.0, max=max_value).reshape(-1, *[1] * (x.dim() - 1))
    return torch.minimum(torch.maximum(x, -bound), bound) / bound


def _cached_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float | None = None,
    sees: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    count, capacity = query.shape[2], key_cache.shape[2]
    rows = lengths[:, None] + torch.arange(count, device=lengths.device)
    keys = _scatter_rows(key_cache, rows, key, 2)
    values = _scatter_rows(value_cache, rows, value, 2)
    columns = torch.arange(capacity, device=lengths.device)
    seen = columns <= rows[:, None, :, None]  # [B, 1, S, L]
    if sees is not None:
        place = columns - lengths[:, None]  # [B, L] of a column among the new rows
        among = sees[:, torch.clamp(place, 0, count - 1)].transpose(0, 1)  # [B, S, L]
        seen = ((place < 0)[:, None] | (among & (place < count)[:, None]))[:, None]
    result = scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=seen,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return rows_together(result), keys, values


def _tree_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    lengths: torch.Tensor,
    sees: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    batch, count, capacity = query.shape[0], query.shape[2], key_cache.shape[2]
    columns = torch.arange(capacity, device=lengths.device)
    old = (columns < lengths[:, None])[:, None, None]  # [B, 1, 1, L]
    seen = torch.cat(
        [old.expand(batch, 1, count, capacity), sees.expand(batch, 1, *sees.shape)], -1
    )
    result = scaled_dot_product_attention(
        query,
        torch.cat([key_cache, key], 2),
        torch.cat([value_cache, value], 2),
        attn_mask=seen,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return rows_together(result)


def _tile_attention(
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
    pattern = pattern_of(frames, tokens_per_frame, references, prefix, suffix)
    return rows_together(per_frame(query, key, value, pattern, mask, scale))

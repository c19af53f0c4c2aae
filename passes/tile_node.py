"""`optimize::tile_attention` in place of an attention site, as nodes of a graph or run at once.

    attended = sdpa(query, key, value)     ───▶     attended = tile_attention(query, key, value, …)

Where the tokens of a frame do not stand side by side, rows are put in order before and back after.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from optimize.ir.attention_sites import Site
from optimize.ir.frame_axis import FrameGrid
from optimize.kernels.tile_attention import schema as _schema  # noqa: F401

aten = torch.ops.aten

Call = Callable[..., Any]
"""Applies an op to arguments: a builder's `call`, or `apply` below."""


def apply(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs an op at once."""
    return op(*args, **kwargs)


def tiled(
    call: Call, site: Site, grid: FrameGrid, references: Sequence[int], device: torch.device
) -> Call:
    """What stands in for a site's node: takes its arguments and returns what it returns.

    Args:
        call: makes nodes, or computes.
        site: self-attention over the tokens.
        grid: their frames.
        references: frames that see and are seen by all, ascending.
        device: of the rows.
    """

    def attend(query: Any, key: Any, value: Any, mask: Any = None, *_: Any, **others: Any) -> Any:
        mask = others.get("attn_mask") if mask is None else mask
        rows = [query, key, value]
        # Where all rows see all rows, their order does not matter; another would round otherwise.
        ordered = grid.frame_major or len(references) == grid.frames
        if not ordered:
            there, back = _orders(call, site, grid, device)
            rows = [call(aten.index_select.default, item, 2, there) for item in rows]
            if mask is not None:
                mask = call(aten.index_select.default, mask, 3, there)
        result = call(
            torch.ops.optimize.tile_attention.default,
            *rows,
            grid.frames,
            grid.tokens_per_frame,
            list(references),
            site.prefix,
            site.suffix,
            mask,
            site.scale,
        )
        if ordered:
            return result
        # Selected as [B, S, N, D], which is the memory that what follows was traced with.
        rows_first = call(aten.transpose.int, result, 1, 2)
        rows_back = call(aten.index_select.default, rows_first, 1, back)
        return call(aten.transpose.int, rows_back, 1, 2)

    return attend


def _orders(call: Call, site: Site, grid: FrameGrid, device: torch.device) -> tuple[Any, Any]:
    """Row numbers, [S] int64, that put tokens frame after frame, and those that put them back."""
    found = (grid.outer, grid.frames, grid.inner)
    return (
        _order(call, site, found, device),
        _order(call, site, (grid.frames, grid.outer, grid.inner), device),
    )


def _order(call: Call, site: Site, sizes: tuple[int, int, int], device: torch.device) -> Any:
    """The rows with the first two of three sizes exchanged; text rows stay."""
    count = sizes[0] * sizes[1] * sizes[2]
    first, end = site.prefix, site.prefix + count

    def numbers(start: int, stop: int) -> Any:
        return call(aten.arange.start, start, stop, dtype=torch.int64, device=device)

    grid = call(aten.view.default, numbers(first, end), list(sizes))
    moved = call(aten.permute.default, grid, [1, 0, 2])
    pieces = [call(aten.reshape.default, moved, [count])]
    if site.prefix:
        pieces.insert(0, numbers(0, first))
    if site.suffix:
        pieces.append(numbers(end, end + site.suffix))
    return pieces[0] if len(pieces) == 1 else call(aten.cat.default, pieces, 0)

"""Runs a graph on this process's share of the rows of one axis, the others in other processes.

Token-wise work is done for a contiguous range of the tokens. At a self-attention site the heads are
shared out instead (DeepSpeed-Ulysses), so the attention op is the same op on fewer heads:

    q, k, v: [B, N, S, D]              q, k, v: [B, N, S/W, D]
    out = sdpa(q, k, v)        ───▶    q, k, v = to_heads(…)         [B, N/W, S, D]
                                       out = to_tokens(sdpa(q, k, v))   [B, N, S/W, D]

Rows beside the tokens (the text of joint attention) are whole in every process: each takes its
heads of them, and their attention is gathered over heads. Where an op needs all rows (unpatchify)
an all-gather completes them.
"""

from collections.abc import Callable, Mapping
from typing import Literal, cast

import torch
from torch import fx

from optimize.ir.axes import Axes, Axis, source_line
from optimize.ir.builder import Builder
from optimize.ir.collectives import Share, gathered, to_heads, to_tokens
from optimize.ir.graph import Graph
from optimize.ir.row_rewrite import RowRewrite
from optimize.ir.token_axis import CannotSubset, mask_of

Exchange = Literal["heads", "keys"]
"""What is exchanged at self-attention: tokens for heads, or all keys and values."""

HEADS, ROWS = 1, 2
"""Dimensions of queries, keys and values, [B, N, S, D]."""

aten = torch.ops.aten


class RowShard(RowRewrite):
    """One rewrite.

    Args:
        graph: the graph to rewrite; unchanged.
        axes: its axes.
        axis: whose rows are shared out; the number of processes divides its size.
        builder: where the nodes go.
        arguments: input name → node, for the inputs of the graph.
        share: of this process.
        exchange: "heads" needs heads that the number of processes divides; "keys" gives each
            process its own query rows, all heads, and all keys and values.
    """

    def __init__(
        self,
        graph: Graph,
        axes: Axes,
        axis: Axis,
        builder: Builder,
        arguments: Mapping[str, fx.Node],
        share: Share,
        exchange: Exchange = "heads",
    ) -> None:
        super().__init__(graph, axes, axis, axis.hint // share.processes, builder, arguments)
        self.share = share
        self.exchange = exchange
        # Self-attention sites, in order.
        self.sites: list[fx.Node] = []
        self._taken: dict[tuple[fx.Node, int], fx.Node] = {}

    def take(
        self, node: fx.Node, whole: fx.Node, dimension: int, rank: int, batch: Axis
    ) -> fx.Node:
        """This process's rows; the same for all samples, so `rank` and `batch` do not matter."""
        key = (whole, dimension)
        if key not in self._taken:
            start, end = self.share.range(self.axis.hint)
            axis = self.axes.of(node)[dimension]
            self._taken[key] = self._by_part(
                whole,
                axis,
                dimension,
                sharded=False,
                tokens=lambda part: self._sliced(part, dimension, start, end),
                others=lambda part: part,
            )
        return self._taken[key]

    def completed(self, node: fx.Node, attention: bool) -> fx.Node:
        """The rows of all processes."""
        dimension = self.token_dimension(node)
        return self._by_part(
            self.mapping[node],
            self.axes.of(node)[dimension],
            dimension,
            sharded=True,
            tokens=lambda part: gathered(self.builder, part, dimension, self.share),
            others=lambda part: part,
        )

    def attention(self, node: fx.Node) -> None:
        """All rows of this process's heads; cross-attention is a matter of query rows alone."""
        query, key, value = (cast(fx.Node, node.args[i]) for i in range(3))
        crosses = key not in self.active and value not in self.active
        if not crosses:
            self.sites.append(node)
        if crosses or self.exchange == "keys":
            super().attention(node)
            return
        replaced = {item: self._to_heads(item, node) for item in dict.fromkeys((query, key, value))}
        mask = mask_of(node)
        if mask is not None:
            replaced[mask] = self._mask_heads(mask)
        self._copy(node, replaced)
        self.mapping[node] = self._by_part(
            self.mapping[node],
            self.axes.of(node)[ROWS],
            ROWS,
            sharded=False,
            tokens=lambda part: to_tokens(self.builder, part, self.share),
            others=lambda part: gathered(self.builder, part, HEADS, self.share),
        )
        self.active.add(node)

    def _to_heads(self, item: fx.Node, node: fx.Node) -> fx.Node:
        shape = item.meta["val"].shape
        processes = self.share.processes
        if len(shape) != 4:
            raise CannotSubset(
                f"node {node.name} ({source_line(node)}): found attention over {len(shape)} "
                "dimensions, expected [batch, heads, tokens, width]"
            )
        if not isinstance(shape[HEADS], int) or shape[HEADS] % processes:
            raise CannotSubset(
                f"node {node.name} ({source_line(node)}): found {shape[HEADS]} heads, expected a "
                f"multiple of {processes} processes; use as many processes as divide it, or "
                'exchange "keys"'
            )
        if item not in self.active:
            return self._own_heads(self.mapping[item])
        return self._by_part(
            self.mapping[item],
            self.axes.of(item)[ROWS],
            ROWS,
            sharded=True,
            tokens=lambda part: to_heads(self.builder, part, self.share),
            others=self._own_heads,
        )

    def _own_heads(self, whole: fx.Node) -> fx.Node:
        return self._sliced(whole, HEADS, *self.share.range(whole.meta["val"].shape[HEADS]))

    def _mask_heads(self, mask: fx.Node) -> fx.Node:
        """A mask with all rows; with this process's heads where each has its own."""
        whole = self._all_rows(mask)
        shape = whole.meta["val"].shape
        # A mask of fewer dimensions is aligned at the right: it has no heads.
        return self._own_heads(whole) if len(shape) == 4 and shape[HEADS] != 1 else whole

    def _by_part(
        self,
        value: fx.Node,
        axis: Axis,
        dimension: int,
        *,
        sharded: bool,
        tokens: Callable[[fx.Node], fx.Node],
        others: Callable[[fx.Node], fx.Node],
    ) -> fx.Node:
        """One function for the tokens along a dimension, another for the parts beside them.

        Args:
            value: the tensor.
            axis: of the dimension, in the original graph: the token axis or a composite of it.
            dimension: where to cut and join again.
            sharded: whether `value` has only this process's tokens.
            tokens: applied to the tokens.
            others: applied to each other part.
        """
        layout = self.axes.layout(axis, self.axis)
        if len(layout) == 1:
            return tokens(value)
        pieces, start = [], 0
        for part in layout:
            is_tokens = part is self.axis
            count = cast(int, self.sizes.rows) if sharded and is_tokens else self.sizes.fixed(part)
            end = start + count
            piece = self._sliced(value, dimension, start, end)
            pieces.append(tokens(piece) if is_tokens else others(piece))
            start = end
        return self.builder.call(aten.cat.default, pieces, dimension)

    def _sliced(self, value: fx.Node, dimension: int, start: int, end: int) -> fx.Node:
        if (start, end) == (0, value.meta["val"].shape[dimension]):
            return value
        return self.builder.call(aten.slice.Tensor, value, dimension, start, end)

"""Computes what follows the last attention for some rows of each sample only.

Such as the last row of each prompt, in a prefill:

    attended: [B, S, D]                        attended: [B, 1, D] = gather_rows(…, last, 1)
    hidden = hidden + linear(attended)  ───▶   hidden = gather_rows(…, last, 1) + linear(attended)
    logits: [B, S, V]                          logits: [B, 1, V]
    gather_rows(logits, last, 1)

The output layer is by far the widest of a decoder; without this it would run for every row.
"""

from collections.abc import Mapping
from typing import cast

from torch import fx

from optimize.ir.axes import Axes, Axis, source_line
from optimize.ir.axis_rules import infer_axes
from optimize.ir.builder import Builder, builder_with_inputs
from optimize.ir.graph import Graph
from optimize.ir.row_rewrite import GATHER, RowRewrite
from optimize.ir.token_axis import SDPA, CannotSubset, ancestors


def with_last_row_only(graph: Graph) -> Graph:
    """A prefill graph whose logits are of one row per sample; see `with_rows_only`."""
    return with_rows_only(graph, 1)


def with_rows_only(graph: Graph, count: int) -> Graph:
    """A graph whose logits are of `count` rows per sample.

    Args:
        graph: one that takes the rows of its logits with one `gather_rows`, the last of the graph.
        count: how many these are.
    Raises:
        CannotSubset: an op behind the last attention needs all rows.
    """
    sites = [node for node in graph.graph.nodes if node.target is SDPA]
    if not sites:
        raise CannotSubset(
            "found no scaled_dot_product_attention, behind which rows are by themselves"
        )
    last = [node for node in graph.graph.nodes if node.target is GATHER][-1]
    builder, arguments = builder_with_inputs(graph)
    rewrite = _FewRows(graph, infer_axes(graph), sites[-1], last, count, builder, arguments)
    return builder.finish(rewrite.copy_all(), graph.dimensions)


class _FewRows(RowRewrite):
    def __init__(
        self,
        graph: Graph,
        axes: Axes,
        site: fx.Node,
        last: fx.Node,
        count: int,
        builder: Builder,
        arguments: Mapping[str, fx.Node],
    ) -> None:
        self.site, self.last = site, last
        self.index = cast(fx.Node, last.args[1])
        rows = axes.of(cast(fx.Node, site.args[0]))[-2]
        super().__init__(graph, axes, rows, count, builder, arguments)

    def births(self) -> set[fx.Node]:
        return {self.site}

    def copy_all(self) -> dict[str, fx.Node]:
        """Copies every node, the index first."""
        early = ancestors(self.index)
        nodes = self.graph.graph.nodes
        self.copy_nodes(
            sorted(nodes, key=lambda node: (node.op != "placeholder", node not in early))
        )
        return {name: self.mapping[node] for name, node in self.graph.output_nodes().items()}

    def _node(self, node: fx.Node) -> None:
        if node is self.last and node.args[0] in self.active:
            self.mapping[node] = self.mapping[cast(fx.Node, node.args[0])]
        else:
            super()._node(node)

    def take(
        self, node: fx.Node, whole: fx.Node, dimension: int, rank: int, batch: Axis
    ) -> fx.Node:
        """The rows of each sample that are wanted."""
        if dimension == 0:
            raise CannotSubset(f"node {node.name} ({source_line(node)}) has its rows first")
        return self.builder.call(GATHER, whole, self.mapping[self.index], dimension)

    def completed(self, node: fx.Node, attention: bool) -> fx.Node:
        raise CannotSubset(
            f"node {node.name} ({source_line(node)}) is read by an op that needs all rows"
        )

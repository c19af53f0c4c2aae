"""Drops rows of a sequence from one layer of a prefill graph on: what pruning passes share.

At the layer's input each sample's rows are gathered, the kept ones in their old order. All that
follows works on fewer rows: tables of positions are gathered with the same index, so that every row
keeps its position, and the caches of later layers become shorter.

    hidden: [B, S, D]                     hidden: [B, S', D] = gather_rows(hidden, index, 1)
    q = rotate(linear(norm(hidden)),      q = rotate(linear(norm(hidden)),
               cos, sin)          ───▶               gather_rows(cos, index), …)
    key_5 = pad(k, capacity)              key_5 = pad(k, capacity - dropped)

Where samples drop different numbers of rows, S' has room for the sample that keeps most; what is
left of the others' rows is padding at the end, like that of shorter prompts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx

from optimize.ir.axes import Axes, Axis, source_line
from optimize.ir.builder import Builder, builder_with_inputs
from optimize.ir.graph import Graph
from optimize.ir.key_value_slots import padded
from optimize.ir.layer_inputs import Layer
from optimize.ir.row_rewrite import GATHER, RowRewrite
from optimize.ir.token_axis import SDPA, CannotSubset, mask_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Kept:
    """What a choice of rows returns.

    Attributes:
        index: [B, S'] int64, the row that each new row was.
        rows: S', a node of a size.
        used: [B] int64, the new rows of each sample that are no padding.
        outputs: further outputs of the graph, by name.
        capacity: rows that the caches of the following layers need.
    """

    index: fx.Node
    rows: fx.Node
    used: fx.Node
    outputs: Mapping[str, fx.Node]
    capacity: int


Choose = Callable[[Builder, Callable[[fx.Node], fx.Node]], Kept]
"""Adds the nodes that choose rows; gets the builder, and old node → its copy in there."""


def with_rows_dropped(
    graph: Graph, axes: Axes, layer: int, layers: tuple[Layer, ...], choose: Choose
) -> Graph:
    """A prefill graph that drops rows just before a layer.

    Args:
        graph: with the outputs `key_i` and `value_i` of each layer.
        axes: its axes.
        layer: number of the first layer that has fewer rows.
        layers: all layers.
        choose: which rows are kept.
    Raises:
        CannotSubset: an op needs all rows of the sequence.
    """
    builder, arguments = builder_with_inputs(graph)
    rewrite = _RowPruning(graph, axes, layers[layer], builder, arguments, choose)
    outputs = rewrite.copy_all()
    kept = rewrite.kept
    for number in range(layer, len(layers)):
        for place, name in ((1, "key"), (2, "value")):
            rows = rewrite.mapping[cast(fx.Node, layers[number].site.args[place])]
            outputs[f"{name}_{number}"] = padded(builder, rows, kept.capacity)
    return builder.finish(outputs | dict(kept.outputs), graph.dimensions)


class _RowPruning(RowRewrite):
    """One cut; the rows are chosen when it is reached."""

    kept: Kept

    def __init__(
        self,
        graph: Graph,
        axes: Axes,
        layer: Layer,
        builder: Builder,
        arguments: Mapping[str, fx.Node],
        choose: Choose,
    ) -> None:
        self.cut = layer.hidden
        self.choose = choose
        # Index of the original graph → the same rows' places among the kept ones.
        self._places: dict[fx.Node, fx.Node] = {}
        self._keys: fx.Node | None = None
        rows = axes.of(cast(fx.Node, layer.site.args[0]))[-2]
        super().__init__(graph, axes, rows, 0, builder, arguments)

    def births(self) -> set[fx.Node]:
        return {self.cut}

    def copy_all(self) -> dict[str, fx.Node]:
        """Copies every node; outputs that hold rows are left to the caller."""
        self.copy_nodes(self.graph.graph.nodes)
        return {
            name: self.mapping[node]
            for name, node in self.graph.output_nodes().items()
            if node not in self.active
        }

    def _activate(self, node: fx.Node) -> None:
        self.kept = self.choose(self.builder, self.mapping.__getitem__)
        self.sizes.rows = self.kept.rows
        super()._activate(node)

    def _node(self, node: fx.Node) -> None:
        reads = [item for item in node.all_input_nodes if item in self.active]
        if reads and isinstance(node.meta.get("val"), torch.SymInt):
            self._copy(node, {})
        elif reads and node.target is GATHER and self._picks_rows(node):
            self._copy(node, {cast(fx.Node, node.args[1]): self._new_places(node)})
        else:
            super()._node(node)

    def _picks_rows(self, node: fx.Node) -> bool:
        own = self.axes.of(cast(fx.Node, node.args[0]))
        return own[cast(int, node.args[2])] is self.axes.find(self.axis)

    def _new_places(self, node: fx.Node) -> fx.Node:
        """Where the rows that an index [B, M] names stand now; they must have been kept."""
        old = self.mapping[cast(fx.Node, node.args[1])]
        if old in self._places:
            return self._places[old]
        mine = self.builder.call(aten.unsqueeze.default, self.kept.index, 1)
        wanted = self.builder.call(aten.unsqueeze.default, old, 2)
        same = self.builder.call(aten.eq.Tensor, mine, wanted)
        whole = self.builder.call(aten._to_copy.default, same, dtype=torch.int64)
        self._places[old] = self.builder.call(aten.argmax.default, whole, -1)
        return self._places[old]

    def take(
        self, node: fx.Node, whole: fx.Node, dimension: int, rank: int, batch: Axis
    ) -> fx.Node:
        """Gathers each sample's rows along one dimension."""
        return self.gathered(node, whole, self.kept.index, dimension, rank)

    def completed(self, node: fx.Node, attention: bool) -> fx.Node:
        raise CannotSubset(
            f"node {node.name} ({source_line(node)}) is read by an op that needs all rows of the "
            "sequence, expected ops that work row by row"
        )

    def attention(self, node: fx.Node) -> None:
        """Attention among the kept rows; a mask of keys is made anew."""
        items = [cast(fx.Node, item) for item in node.args[:3]]
        if node.target is not SDPA or not all(item in self.active for item in items):
            raise CannotSubset(
                f"node {node.name} ({source_line(node)}): found attention of the sequence to other "
                "rows, expected self-attention"
            )
        args = [*(self.mapping[item] for item in items), *node.args[3:]]
        if mask_of(node) is not None:
            args[3] = self._valid_keys()
        self.mapping[node] = self.builder.call(SDPA, *args, **node.kwargs)
        self.mapping[node].meta["stack_trace"] = node.meta.get("stack_trace")
        self.active.add(node)

    def _valid_keys(self) -> fx.Node:
        """[B, 1, 1, S'] bool: the rows that are no padding."""
        if self._keys is None:
            numbers = self.builder.call(aten.arange.default, self.kept.rows)
            ends = self.builder.call(aten.view.default, self.kept.used, [-1, 1, 1, 1])
            self._keys = self.builder.call(aten.lt.Tensor, numbers, ends)
        return self._keys

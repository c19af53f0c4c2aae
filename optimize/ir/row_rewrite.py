"""Runs a graph on some rows of one axis: what token caching and sequence parallelism share.

Where the axis is born (patch embedding's flatten) only the wanted rows are kept; every op that
works row by row then works on those rows only; where an op needs all rows (unpatchify at the axis's
death, a convolution) its input is completed first. Nothing here says where the missing rows come
from: a subclass answers how rows are taken from a whole tensor and how a tensor is completed, and
may treat attention its own way.

Rows of an axis that is part of a composite (joint text and image attention) are numbered within the
composite; the other parts are always whole.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import fx

from optimize.ir.axes import Axes, Axis, op_name, source_line
from optimize.ir.axis_rules import mixed_dimensions
from optimize.ir.builder import Builder
from optimize.ir.graph import Graph, tensor_inputs
from optimize.ir.node_arguments import argument
from optimize.ir.row_sizes import RowSizes
from optimize.ir.token_axis import SDPA, CannotSubset, descendants, is_attention, mask_of
from optimize.kernels.gather_rows import schema as _gather_schema  # noqa: F401  registers the op

aten = torch.ops.aten
GATHER = torch.ops.optimize.gather_rows.default


class RowRewrite(ABC):
    """One rewrite: copies a graph into a builder, on some rows of an axis.

    Args:
        graph: the graph to rewrite; unchanged.
        axes: its axes.
        axis: whose rows are wanted in part.
        rows: how many are wanted; a node where a request decides it.
        builder: where the nodes go.
        arguments: input name → node, for the inputs of the graph.
    """

    def __init__(
        self,
        graph: Graph,
        axes: Axes,
        axis: Axis,
        rows: int | fx.Node,
        builder: Builder,
        arguments: Mapping[str, fx.Node],
    ) -> None:
        self.graph, self.axes, self.axis = graph, axes, axes.find(axis)
        self.builder = builder
        self.sizes = RowSizes(axes, self.axis, rows)
        self.arguments = arguments
        self.sources = self.births()
        self.mapping: dict[fx.Node, fx.Node] = {}
        # Nodes of the original graph whose copies hold the wanted rows only.
        self.active: set[fx.Node] = set()
        self._whole: dict[fx.Node, fx.Node] = {}
        self._gathered: dict[tuple[fx.Node, fx.Node, int, int], fx.Node] = {}

    def births(self) -> set[fx.Node]:
        """Nodes at which rows are taken, if the axis is born there: what the latent makes."""
        return descendants(self.graph.node("latent"))

    @abstractmethod
    def take(
        self, node: fx.Node, whole: fx.Node, dimension: int, rank: int, batch: Axis
    ) -> fx.Node:
        """The wanted rows of a whole tensor.

        Args:
            node: of the original graph.
            whole: its copy, with all rows.
            dimension: which of its dimensions is or contains the token axis.
            rank: dimensions of the tensor that it is broadcast against.
            batch: first axis of that tensor.
        """

    @abstractmethod
    def completed(self, node: fx.Node, attention: bool) -> fx.Node:
        """The whole tensor of an active node; `attention` where it holds keys or values."""

    def copy_nodes(self, nodes: Iterable[fx.Node]) -> None:
        """Copies nodes of the graph, in an order in which each comes behind its inputs."""
        for node in nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "call_function":
                self._node(node)

    def copy_all(self) -> dict[str, fx.Node]:
        """Copies every node; returns output name → node, the outputs as whole tensors."""
        self.copy_nodes(self.graph.graph.nodes)
        return {
            name: self.complete(node) if node in self.active else self.mapping[node]
            for name, node in self.graph.output_nodes().items()
        }

    def gathered(
        self, node: fx.Node, whole: fx.Node, index: fx.Node, dimension: int, rank: int
    ) -> fx.Node:
        """Each sample's rows along one dimension, after adding leading dimensions up to `rank`.

        Args:
            node: of the original graph.
            whole: its copy, with all rows.
            index: [B, M] int64, each sample's rows.
            dimension: where the rows are.
            rank: dimensions of the tensor that the result is broadcast against.
        Raises:
            CannotSubset: the first dimension is neither 1 nor the batch.
        """
        missing = rank - whole.meta["val"].ndim
        if dimension + missing == 0:
            missing += 1
        key = (whole, index, dimension, missing)
        if key not in self._gathered:
            value = whole
            for _ in range(missing):
                value = self.builder.call(aten.unsqueeze.default, value, 0)
            first, batch = value.meta["val"].shape[0], index.meta["val"].shape[0]
            if str(first) not in ("1", str(batch)):
                raise CannotSubset(
                    f"node {node.name} ({source_line(node)}) has first dimension {first}, expected "
                    "the batch; tokens with another leading dimension are not supported"
                )
            self._gathered[key] = self.builder.call(GATHER, value, index, dimension + missing)
        return self._gathered[key]

    def complete(self, node: fx.Node, attention: bool = False) -> fx.Node:
        """The whole tensor of an active node; the same one when asked for again."""
        if node not in self._whole:
            self._whole[node] = self.completed(node, attention)
        return self._whole[node]

    def attention(self, node: fx.Node) -> None:
        """The wanted query rows against whole keys and values; a mask keeps its keys whole.

        Query, key and value may be one node; then only the query keeps the wanted rows.

        Raises:
            CannotSubset: the op, or its mask, needs the queries of all tokens.
        """
        if node.target is not SDPA or argument(node, 5, "is_causal", False):
            raise CannotSubset(
                f"node {node.name} ({source_line(node)}): found {op_name(node)} over the queries "
                "of all tokens, expected attention whose query rows can be computed one by one"
            )
        query, *keys_and_values = (cast(fx.Node, node.args[i]) for i in range(3))
        args = [self.mapping[query], *map(self._all_rows, keys_and_values), *node.args[3:]]
        kwargs = dict(node.kwargs)
        mask = mask_of(node)
        if mask is not None and len(node.args) > 3:
            args[3] = self._mask_rows(mask, node)
        elif mask is not None:
            kwargs["attn_mask"] = self._mask_rows(mask, node)
        self.mapping[node] = self.builder.call(SDPA, *args, **kwargs)
        self.mapping[node].meta["stack_trace"] = node.meta.get("stack_trace")
        self.active.add(node)

    def _all_rows(self, item: fx.Node) -> fx.Node:
        return self.complete(item, attention=True) if item in self.active else self.mapping[item]

    def _mask_rows(self, mask: fx.Node, node: fx.Node) -> fx.Node:
        """The wanted query rows of a mask; its key dimension stays whole."""
        if mask in self.active:
            raise CannotSubset(f"node {node.name}: the attention mask depends on the latent")
        own, result = self.axes.of(mask), self.axes.of(node)
        if len(own) < 2 or own[-2].extent == 1 or not self.axes.contains(own[-2], self.axis):
            return self.mapping[mask]
        return self.take(mask, self.mapping[mask], len(own) - 2, len(result), result[0])

    def _placeholder(self, node: fx.Node) -> None:
        if node.name in self.graph.weights:
            weight = self.graph.weights[node.name]
            self.mapping[node] = self.builder.weight(weight, node.meta["val"])
        else:
            self.mapping[node] = self.arguments[node.name]
        if node in self.sources and self._carried(node):
            self._activate(node)

    def _carried(self, node: fx.Node) -> list[int]:
        return self.axes.carrying(node, self.axis) if self.axes.is_tensor(node) else []

    def _node(self, node: fx.Node) -> None:
        if is_attention(node) and cast(fx.Node, node.args[0]) in self.active:
            self.attention(node)
            return
        active = [item for item in tensor_inputs(node) if item in self.active]
        tuples = [item for item in node.all_input_nodes if item in self.active]
        if op_name(node) == "getitem" and tuples:
            self._copy(node, {})
            if self._carried(node):
                self.active.add(node)
            return
        if not active:
            self._copy(node, {}, evaluate=False)
            if node in self.sources and self._carried(node):
                self._activate(node)
            return
        if self.sizes.takes_other_parts(node):
            self._copy(node, {}, sized=True)
            return
        if not self._row_by_row(node, active):
            self._copy(node, {item: self.complete(item) for item in active})
            if self._carried(node) and not any(self._carried(item) for item in active):
                self._activate(node)
            return
        replaced = {
            item: self._take_for(item, node)
            for item in tensor_inputs(node)
            if item not in self.active and self._carried(item)
        }
        self._copy(node, replaced, sized=True)
        self.active.add(node)

    def _row_by_row(self, node: fx.Node, active: list[fx.Node]) -> bool:
        """Whether each row of the output depends on the same row of the inputs only."""
        for item in active:
            if set(self._carried(item)) & mixed_dimensions(node, item):
                return False
        if self.axes.is_tensor(node):
            return len(self._carried(node)) == 1
        if not isinstance(node.meta["val"], (list, tuple)):
            return False  # a size, of the whole tensor
        groups = range(len(node.meta["val"]))
        carried = [
            [axis for axis in self.axes.of_item(node, i) if self.axes.contains(axis, self.axis)]
            for i in groups
        ]
        return any(carried) and all(len(axes) <= 1 for axes in carried)

    def _activate(self, node: fx.Node) -> None:
        """Takes the wanted rows of a whole tensor; the rest of the graph sees only these."""
        whole = self.mapping[node]
        rank, batch = whole.meta["val"].ndim, self.axes.of(node)[0]
        self.mapping[node] = self.take(node, whole, self.token_dimension(node), rank, batch)
        self._whole[node] = whole
        self.active.add(node)

    def token_dimension(self, node: fx.Node) -> int:
        """The one dimension of a tensor that carries the tokens."""
        carried = self._carried(node)
        if len(carried) != 1:
            raise CannotSubset(
                f"node {node.name} ({source_line(node)}) carries the tokens in {len(carried)} "
                "dimensions, expected one (attention outside scaled_dot_product_attention?)"
            )
        return carried[0]

    def _take_for(self, item: fx.Node, consumer: fx.Node) -> fx.Node:
        """The wanted rows of a whole tensor, in the form its consumer broadcasts it."""
        is_tensor = self.axes.is_tensor(consumer)
        result = self.axes.of(consumer) if is_tensor else self.axes.of_item(consumer, 0)
        dimension = self.token_dimension(item)
        return self.take(item, self.mapping[item], dimension, len(result), result[0])

    def _copy(
        self,
        node: fx.Node,
        replaced: Mapping[fx.Node, fx.Node],
        evaluate: bool = True,
        sized: bool = False,
    ) -> None:
        mapping = {item: replaced.get(item, self.mapping[item]) for item in node.all_input_nodes}
        new = self.builder.copy(node, mapping, evaluate=False)
        # A completed or exchanged tensor may lie in memory otherwise than the one that was traced.
        if new.target is aten.view.default:
            new.target = aten.reshape.default
        if sized:
            self.sizes.adjust(node, new)
        if evaluate:
            self.builder.evaluate(new)
        self.mapping[node] = new

"""Runs a graph on a subset of the rows of one axis: the generic rewrite behind token caching.

Where the axis is born (patch embedding's flatten) the wanted rows are gathered; every op that works
row by row then works on those rows only; where an op needs all rows (the keys and values of
attention, unpatchify at the axis's death, a convolution) the fresh rows are written into a cache of
the whole tensor and the op reads that.

    q, k, v: [B, N, 256, D]                     q, k, v: [B, N, 128, D]
    sdpa(q, k, v)                      ───▶     k_all = scatter_rows(cache_k, index, k)
                                                v_all = scatter_rows(cache_v, index, v)
                                                sdpa(q, k_all, v_all)

With every cache filled at the same latent and timestep, the rows equal those of the whole graph.
Rows of an axis that is part of a composite (joint text and image attention) are numbered within the
composite; the other parts are always fresh.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from optimize.ir.axes import Axes, Axis, op_name, source_line
from optimize.ir.axis_rules import mixed_dimensions
from optimize.ir.builder import Builder
from optimize.ir.graph import Graph, Size, tensor_inputs
from optimize.ir.row_sizes import RowSizes
from optimize.ir.token_axis import SDPA, CannotSubset, descendants
from optimize.kernels.gather_rows import schema as _gather_schema  # noqa: F401
from optimize.kernels.scatter_rows import schema as _scatter_schema  # noqa: F401

aten = torch.ops.aten


@dataclass(frozen=True)
class Cache:
    """A whole tensor kept between calls.

    Attributes:
        name: input and output name in the rewritten graph.
        source: the node of the original graph whose value it holds.
        dimension: where its rows are.
        attention: whether it holds keys or values.
    """

    name: str
    source: fx.Node
    dimension: int
    attention: bool


@dataclass(frozen=True)
class Subset:
    """The rewritten graph's nodes, before its outputs are chosen.

    Attributes:
        outputs: output name → node, whole tensors.
        caches: what it reads and writes, in order.
        updated: cache name → node of the new value.
    """

    outputs: dict[str, fx.Node]
    caches: tuple[Cache, ...]
    updated: dict[str, fx.Node]


class RowSubset:
    """One rewrite: copies a graph into a builder, on some rows of an axis.

    Args:
        graph: the graph to rewrite; unchanged.
        axes: its axes.
        axis: whose rows are subset; its size must be fixed.
        builder: where the nodes go; its inputs are made here.
        index: [B, M] int64 node, the wanted rows of each sample, ascending.
        arguments: input name → node, for the inputs of the graph.
    """

    def __init__(
        self,
        graph: Graph,
        axes: Axes,
        axis: Axis,
        builder: Builder,
        index: fx.Node,
        arguments: Mapping[str, fx.Node],
    ) -> None:
        self.graph, self.axes, self.axis = graph, axes, axes.find(axis)
        self.builder = builder
        self.index = index
        self.sizes = RowSizes(axes, self.axis, int(index.meta["val"].shape[1]))
        self.arguments = arguments
        self.from_latent = descendants(graph.node("latent"))
        self.mapping: dict[fx.Node, fx.Node] = {}
        # Nodes of the original graph whose copies hold the wanted rows only.
        self.active: set[fx.Node] = set()
        self.caches: list[Cache] = []
        self.updated: dict[str, fx.Node] = {}
        self._whole: dict[fx.Node, fx.Node] = {}
        self._gathered: dict[tuple[Any, ...], fx.Node] = {}
        self._indices: dict[tuple[Any, ...], fx.Node] = {}

    def run(self) -> Subset:
        """Copies every node; returns the outputs as whole tensors."""
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "call_function":
                self._node(node)
        outputs = {}
        for name, node in self.graph.output_nodes().items():
            outputs[name] = self._complete(node) if node in self.active else self.mapping[node]
        return Subset(outputs, tuple(self.caches), self.updated)

    def _placeholder(self, node: fx.Node) -> None:
        if node.name in self.graph.weights:
            weight = self.graph.weights[node.name]
            self.mapping[node] = self.builder.weight(weight, node.meta["val"])
        else:
            self.mapping[node] = self.arguments[node.name]
        if node in self.from_latent and self._carried(node):
            self._activate(node)

    def _carried(self, node: fx.Node) -> list[int]:
        return self.axes.carrying(node, self.axis) if self.axes.is_tensor(node) else []

    def _node(self, node: fx.Node) -> None:
        if node.target is SDPA and cast(fx.Node, node.args[0]) in self.active:
            self._attention(node)
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
            if node in self.from_latent and self._carried(node):
                self._activate(node)
            return
        if self.sizes.takes_other_parts(node):
            self._copy(node, {}, sized=True)
            return
        if not self._row_by_row(node, active):
            self._copy(node, {item: self._complete(item) for item in active})
            if self._carried(node) and not any(self._carried(item) for item in active):
                self._activate(node)
            return
        replaced = {
            item: self._gather(item, node)
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
        groups = range(len(node.meta["val"]))
        carried = [
            [axis for axis in self.axes.of_item(node, i) if self.axes.contains(axis, self.axis)]
            for i in groups
        ]
        return any(carried) and all(len(axes) <= 1 for axes in carried)

    def _activate(self, node: fx.Node) -> None:
        """Gathers the wanted rows of a whole tensor; the rest of the graph sees only these."""
        whole = self.mapping[node]
        dimension = self._one_dimension(node)
        batch = self.axes.of(node)[0]
        self.mapping[node] = self._gather_at(node, whole, dimension, whole.meta["val"].ndim, batch)
        self._whole[node] = whole
        self.active.add(node)

    def _one_dimension(self, node: fx.Node) -> int:
        carried = self._carried(node)
        if len(carried) != 1:
            raise CannotSubset(
                f"node {node.name} ({source_line(node)}) carries the tokens in {len(carried)} "
                "dimensions, expected one (attention outside scaled_dot_product_attention?)"
            )
        return carried[0]

    def _gather(self, item: fx.Node, consumer: fx.Node) -> fx.Node:
        """The wanted rows of a whole tensor, in the form its consumer broadcasts it."""
        is_tensor = self.axes.is_tensor(consumer)
        result = self.axes.of(consumer) if is_tensor else self.axes.of_item(consumer, 0)
        dimension = self._one_dimension(item)
        return self._gather_at(item, self.mapping[item], dimension, len(result), result[0])

    def _gather_at(
        self, node: fx.Node, whole: fx.Node, dimension: int, rank: int, batch: Axis
    ) -> fx.Node:
        """Gathers along one dimension, after adding leading dimensions up to `rank`."""
        index = self._index(self.axes.of(node)[dimension], batch)
        missing = rank - whole.meta["val"].ndim
        if dimension + missing == 0:
            missing += 1
        key = (whole, index, dimension, missing)
        if key not in self._gathered:
            value = whole
            for _ in range(missing):
                value = self.builder.call(aten.unsqueeze.default, value, 0)
            first = value.meta["val"].shape[0]
            if not (isinstance(first, int) and first == 1) and not self._same_size(first, index):
                raise CannotSubset(
                    f"node {node.name} ({source_line(node)}) has first dimension {first}, expected "
                    "the batch; tokens with another leading dimension are not supported"
                )
            self._gathered[key] = self.builder.call(
                torch.ops.optimize.gather_rows.default, value, index, dimension + missing
            )
        return self._gathered[key]

    def _same_size(self, size: Size, index: fx.Node) -> bool:
        expected = index.meta["val"].shape[0]
        return str(size) == str(expected)

    def _index(self, axis: Axis, batch: Axis) -> fx.Node:
        """The wanted rows within an axis that is or contains the token axis, [B, rows] int64.

        A batch made of copies of the latent's batch (guidance halves) shares the same rows.
        """
        layout = tuple(self.axes.layout(axis, self.axis))
        copies = self._copies(batch)
        key = (*(part.serial for part in layout), copies)
        if key not in self._indices:
            pieces: list[fx.Node] = []
            offset = 0
            for part in layout:
                if part is self.axis:
                    shifted = self.index
                    if offset:
                        shifted = self.builder.call(aten.add.Tensor, self.index, offset)
                    pieces.append(shifted)
                else:
                    pieces.append(self._constant_rows(offset, offset + self.sizes.fixed(part)))
                offset += self.sizes.fixed(part)
            rows = pieces[0]
            if len(pieces) > 1:
                rows = self.builder.call(aten.cat.default, pieces, 1)
            if copies > 1:
                rows = self.builder.call(aten.cat.default, [rows] * copies, 0)
            self._indices[key] = rows
        return self._indices[key]

    def _constant_rows(self, start: int, end: int) -> fx.Node:
        """[B, end - start] int64: the same rows for each sample."""
        column = self.builder.call(aten.slice.Tensor, self.index, 1, 0, 1)
        zeros = self.builder.call(aten.mul.Tensor, column, 0)
        rows = self.builder.call(aten.arange.start, start, end, dtype=torch.int64)
        return self.builder.call(aten.add.Tensor, zeros, rows)

    def _copies(self, batch: Axis) -> int:
        """How many copies of the latent's batch a batch axis consists of."""
        latent = self.axes.of(self.graph.node("latent"))[0]
        batch = self.axes.find(batch)
        if batch.parts and all(self.axes.find(part) is latent for part in batch.parts):
            return len(batch.parts)
        return 1

    def _complete(self, node: fx.Node) -> fx.Node:
        """The whole tensor of an active node: its fresh rows over the cached ones."""
        if node not in self._whole:
            self._whole[node] = self._scatter(node, attention=False)
        return self._whole[node]

    def _scatter(self, node: fx.Node, attention: bool) -> fx.Node:
        dimension = self._one_dimension(node)
        own = self.axes.of(node)
        rows = self.mapping[node]
        name = f"cache_{len(self.caches)}"
        cache = self.builder.input(name, self.builder.fake(self._shape(node), _dtype(node)))
        index = self._index(own[dimension], own[0])
        updated = self.builder.call(
            torch.ops.optimize.scatter_rows.default, cache, index, rows, dimension
        )
        self.caches.append(Cache(name, node, dimension, attention))
        self.updated[name] = updated
        return updated

    def _shape(self, node: fx.Node) -> tuple[Size, ...]:
        return tuple(node.meta["val"].shape)

    def _attention(self, node: fx.Node) -> None:
        """Fresh queries against whole keys and values; a mask keeps its key dimension whole."""
        query, key, value = (cast(fx.Node, node.args[i]) for i in range(3))
        replaced: dict[fx.Node, fx.Node] = {}
        for item in (key, value):
            if item in self.active:
                if item not in self._whole:
                    self._whole[item] = self._scatter(item, attention=True)
                replaced[item] = self._whole[item]
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        arguments = {item: replaced.get(item, self.mapping[item]) for item in node.all_input_nodes}
        if isinstance(mask, fx.Node):
            rows = self.axes.of(mask)[-2] if self.axes.of(mask)[1:] else None
            if mask in self.active:
                raise CannotSubset(f"node {node.name}: the attention mask depends on the latent")
            if rows is not None and rows.extent != 1 and self.axes.contains(rows, self.axis):
                arguments[mask] = self._mask_rows(mask, self.axes.of(node))
        arguments[query] = self.mapping[query]
        # Query, key and value may be one node; then only the query keeps the wanted rows.
        new_args = list(node.args)
        for position, item in enumerate((query, key, value)):
            new_args[position] = (
                replaced.get(item, self.mapping[item]) if position else arguments[query]
            )
        kwargs = dict(node.kwargs)
        if isinstance(mask, fx.Node):
            if len(new_args) > 3:
                new_args[3] = arguments[mask]
            else:
                kwargs["attn_mask"] = arguments[mask]
        self.mapping[node] = self.builder.call(SDPA, *new_args, **kwargs)
        self.mapping[node].meta["stack_trace"] = node.meta.get("stack_trace")
        self.active.add(node)

    def _mask_rows(self, mask: fx.Node, result: list[Axis]) -> fx.Node:
        """The wanted query rows of a mask; its key dimension stays whole."""
        dimension = len(self.axes.of(mask)) - 2
        return self._gather_at(mask, self.mapping[mask], dimension, len(result), result[0])

    def _copy(
        self,
        node: fx.Node,
        replaced: Mapping[fx.Node, fx.Node],
        evaluate: bool = True,
        sized: bool = False,
    ) -> None:
        mapping = {item: replaced.get(item, self.mapping[item]) for item in node.all_input_nodes}
        new = self.builder.copy(node, mapping, evaluate=False)
        if sized:
            self.sizes.adjust(node, new)
        if evaluate:
            self.builder.evaluate(new)
        self.mapping[node] = new


def _dtype(node: fx.Node) -> torch.dtype:
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype

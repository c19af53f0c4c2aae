"""Runs a graph on a subset of the rows of one axis, the others from caches: `cache_regions`.

The wanted rows are an input, and each sample has its own. Where an op needs all rows (the keys and
values of attention, unpatchify) the fresh ones are written into a cache of the whole tensor and the
op reads that.

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
from typing import Any

import torch
from torch import fx

from optimize.ir.axes import Axes, Axis
from optimize.ir.builder import Builder
from optimize.ir.graph import Graph
from optimize.ir.row_rewrite import RowRewrite
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


class RowSubset(RowRewrite):
    """One rewrite; its inputs are made in the builder.

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
        rows = int(index.meta["val"].shape[1])
        super().__init__(graph, axes, axis, rows, builder, arguments)
        self.index = index
        self.caches: list[Cache] = []
        self.updated: dict[str, fx.Node] = {}
        self._indices: dict[tuple[Any, ...], fx.Node] = {}

    def run(self) -> Subset:
        """Copies every node; returns the outputs as whole tensors."""
        outputs = self.copy_all()
        return Subset(outputs, tuple(self.caches), self.updated)

    def take(
        self, node: fx.Node, whole: fx.Node, dimension: int, rank: int, batch: Axis
    ) -> fx.Node:
        """Gathers along one dimension."""
        index = self._index(self.axes.of(node)[dimension], batch)
        return self.gathered(node, whole, index, dimension, rank)

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

    def completed(self, node: fx.Node, attention: bool) -> fx.Node:
        """The fresh rows of an active node over the cached ones."""
        dimension = self.token_dimension(node)
        own = self.axes.of(node)
        rows, value = self.mapping[node], node.meta["val"]
        name = f"cache_{len(self.caches)}"
        cache = self.builder.input(name, self.builder.fake(value.shape, value.dtype))
        index = self._index(own[dimension], own[0])
        updated = self.builder.call(
            torch.ops.optimize.scatter_rows.default, cache, index, rows, dimension
        )
        self.caches.append(Cache(name, node, dimension, attention))
        self.updated[name] = updated
        return updated

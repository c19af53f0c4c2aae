"""A graph whose matrix products, convolutions and attention run in half precision.

Everything else (norms, softmax on its own, sums of the residual stream, sampling, the solver) stays
in the dtype it was traced in; ops that only move numbers keep what they are given. So a result is
rounded where an engine is fast, and nowhere else. The dtypes of inputs, outputs and state stay.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from optimize.ir.builder import Builder
from optimize.ir.graph import Graph

aten = torch.ops.aten

PRODUCTS = frozenset(
    {
        aten.linear.default,
        aten.addmm.default,
        aten.mm.default,
        aten.bmm.default,
        aten.baddbmm.default,
        aten.matmul.default,
        aten.conv1d.default,
        aten.conv2d.default,
        aten.conv3d.default,
        aten.convolution.default,
        aten.scaled_dot_product_attention.default,
        torch.ops.optimize.tile_attention.default,
    }
)
"""Ops whose operands are rounded."""

MOVES = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.unflatten.int,
        aten.flatten.using_ints,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.expand.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.chunk.default,
        aten.unbind.int,
        aten.clone.default,
        aten.contiguous.default,
        aten.alias.default,
        aten.embedding.default,
        aten.repeat.default,
    }
)
"""Ops that return the numbers of their first tensor as they are."""


def lowered_weights(graphs: Mapping[str, Graph]) -> frozenset[str]:
    """Names of the float weights that a product reads in some graph."""
    found = set()
    for graph in graphs.values():
        for node in graph.graph.nodes:
            is_weight = node.op == "placeholder" and node.name in graph.weights
            if (
                is_weight
                and _is_wide(node.meta["val"])
                and any(user.target in PRODUCTS for user in node.users)
            ):
                found.add(graph.weights[node.name])
    return frozenset(found)


def in_low_precision(
    graph: Graph, dtype: torch.dtype, lowered: frozenset[str]
) -> tuple[Graph, tuple[str, ...]]:
    """The graph with its products in another dtype, and the names of their nodes.

    Args:
        graph: stays as it is.
        dtype: float16 or bfloat16.
        lowered: the weights that the program stores in that dtype.
    """
    sites = [
        node
        for node in graph.graph.nodes
        if node.op == "call_function" and node.target in PRODUCTS and _is_wide(node.meta["val"])
    ]
    if not sites and not lowered & set(graph.weights.values()):
        return graph, ()
    mode = next(
        node.meta["val"].fake_mode for node in graph.graph.nodes if node.op == "placeholder"
    )
    maker = _Maker(Builder(mode), dtype, frozenset(sites))
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            maker.enter(node, graph.weights.get(node.name), lowered)
        elif node.op == "call_function":
            maker.make(node)
    outputs = {name: maker.wide(node) for name, node in graph.output_nodes().items()}
    return maker.builder.finish(outputs, graph.dimensions), tuple(node.name for node in sites)


def _is_wide(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (torch.float32, torch.float64)


class _Maker:
    """Makes the nodes of the new graph from those of the old one."""

    def __init__(self, builder: Builder, dtype: torch.dtype, sites: frozenset[fx.Node]) -> None:
        self.builder = builder
        self._dtype = dtype
        self._sites = sites
        self._made: dict[fx.Node, fx.Node] = {}
        self._cast: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}

    def enter(self, node: fx.Node, weight: str | None, lowered: frozenset[str]) -> None:
        """A placeholder; the weights that are stored in half precision come in as such."""
        value = node.meta["val"]
        if weight is None:
            self._made[node] = self.builder.input(node.name, value)
        elif weight in lowered:
            fake = self.builder.fake(value.shape, self._dtype)
            self._made[node] = self.builder.weight(weight, fake)
        else:
            self._made[node] = self.builder.weight(weight, value)

    def make(self, node: fx.Node) -> None:
        """A call, with its operands in the dtype it is to be run in."""
        pick = self._narrow if node in self._sites else self.wide
        if node.target in MOVES or isinstance(node.meta["val"], (tuple, list)):
            pick = self._as_is if node.target in MOVES else pick
        args, kwargs = fx.map_arg((node.args, node.kwargs), pick)
        target: Any = node.target
        new = self.builder.call(target, *args, **kwargs)
        for key, item in node.meta.items():
            new.meta.setdefault(key, item)
        self._made[node] = new

    def wide(self, node: fx.Node) -> fx.Node:
        """What a node computes, in the dtype it was traced in."""
        new, traced = self._made[node], node.meta["val"]
        if not _is_wide(traced) or new.meta["val"].dtype == traced.dtype:
            return new
        return self._to(new, traced.dtype)

    def _narrow(self, node: fx.Node) -> fx.Node:
        new = self._made[node]
        return self._to(new, self._dtype) if _is_wide(new.meta.get("val")) else new

    def _as_is(self, node: fx.Node) -> fx.Node:
        return self._made[node]

    def _to(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        key = (node, dtype)
        if key not in self._cast:
            self._cast[key] = self.builder.call(aten._to_copy.default, node, dtype=dtype)
        return self._cast[key]

"""Adds nodes to a graph while keeping shapes: each is run on fake tensors as it is made."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from optimize.ir.graph import Graph

ORIGIN = ("stack_trace", "nn_module_stack")
"""Where in the user's code a node comes from."""


class Builder:
    """Builds one graph from nodes of others.

    Args:
        fake_mode: the mode the source graphs' fake tensors belong to.
    """

    def __init__(self, fake_mode: FakeTensorMode) -> None:
        self.fake_mode = fake_mode
        self.graph = fx.Graph()
        self.weights: dict[str, str] = {}
        self.inputs: list[str] = []
        self._by_weight: dict[str, fx.Node] = {}
        self._last_placeholder: fx.Node | None = None
        self._sizes: dict[sympy.Expr, fx.Node] = {}

    def _placeholder(self, name: str, value: torch.Tensor) -> fx.Node:
        """A placeholder behind the others, wherever building has got to."""
        if self._last_placeholder is not None:
            point = self.graph.inserting_after(self._last_placeholder)
        else:
            point = self.graph.inserting_before(self.graph._root.next)
        with point:
            node = self.graph.placeholder(name)
        node.meta["val"] = value
        self._last_placeholder = node
        return node

    def input(self, name: str, value: torch.Tensor) -> fx.Node:
        """A new input; `value` is its fake tensor."""
        node = self._placeholder(name, value)
        if node.name != name:
            raise ValueError(f"input {name!r}: the name is taken or no identifier")
        self.inputs.append(node.name)
        return node

    def weight(self, name: str, value: torch.Tensor) -> fx.Node:
        """The placeholder of a weight; the same one when asked for again."""
        if name not in self._by_weight:
            node = self._placeholder("w_" + name.replace(".", "_"), value)
            self.weights[node.name] = name
            self._by_weight[name] = node
        return self._by_weight[name]

    def fake(self, shape: Sequence[int | torch.SymInt], dtype: torch.dtype) -> torch.Tensor:
        """A fake tensor, for a new input."""
        with self.fake_mode:
            return torch.empty(tuple(shape), dtype=dtype)

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A new node; arguments may be nodes, numbers, and lists of these."""
        node = self.graph.call_function(target, args, kwargs)
        self.evaluate(node)
        return node

    def size(self, size: int | torch.SymInt) -> int | fx.Node:
        """A size as a number, or as a node that computes it from the sizes of the inputs.

        Raises:
            ValueError: it is no sum or product of sizes of inputs.
        """
        if isinstance(size, int):
            return size
        return self._expression(size.node.expr)

    def _expression(self, expression: sympy.Expr) -> int | fx.Node:
        if expression.is_Integer:
            return int(expression)
        if expression not in self._sizes:
            self._sizes[expression] = self._made(expression)
        return self._sizes[expression]

    def _made(self, expression: sympy.Expr) -> fx.Node:
        if expression.is_Symbol:
            for node in self.graph.nodes:
                if node.op == "placeholder" and node.name in self.inputs:
                    for dimension, found in enumerate(node.meta["val"].shape):
                        if isinstance(found, torch.SymInt) and found.node.expr == expression:
                            return self.call(torch.ops.aten.sym_size.int, node, dimension)
        combine = {sympy.Add: operator.add, sympy.Mul: operator.mul}.get(expression.func)
        if combine is None:
            raise ValueError(f"size {expression}: found no input with it")
        first, *rest = (self._expression(item) for item in expression.args)
        for item in rest:
            first = self.call(combine, first, item)
        assert isinstance(first, fx.Node)
        return first

    def copy(self, node: fx.Node, mapping: Mapping[fx.Node, fx.Node], evaluate: bool) -> fx.Node:
        """A copy of a node with its inputs mapped; `evaluate` where shapes may have changed."""
        new = self.graph.node_copy(node, lambda old: mapping[old])
        new.meta = dict(node.meta)
        if evaluate:
            self.evaluate(new)
        return new

    def inline(
        self, graph: Graph, arguments: Mapping[str, fx.Node], evaluate: bool = False
    ) -> dict[str, fx.Node]:
        """Copies a whole graph with its inputs bound to nodes; returns output name → node.

        Args:
            evaluate: the graph comes from another trace, so shapes are worked out anew.
        """
        mapping = self.inlined_nodes(graph, arguments, evaluate)
        return {name: mapping[node] for name, node in graph.output_nodes().items()}

    def inlined_nodes(
        self,
        graph: Graph,
        arguments: Mapping[str, fx.Node],
        evaluate: bool = False,
        instead: Mapping[fx.Node, Callable[..., fx.Node]] | None = None,
    ) -> dict[fx.Node, fx.Node]:
        """Copies a whole graph with its inputs bound to nodes; returns old node → new node.

        Args:
            instead: node → what makes another in its place from its mapped arguments.
        """
        instead = instead or {}
        mapping: dict[fx.Node, fx.Node] = {}
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                if node.name in graph.weights:
                    value = node.meta["val"]
                    own = self.fake(value.shape, value.dtype) if evaluate else value
                    mapping[node] = self.weight(graph.weights[node.name], own)
                else:
                    mapping[node] = arguments[node.name]
            elif node in instead:
                args, kwargs = fx.map_arg((node.args, node.kwargs), mapping.__getitem__)
                mapping[node] = instead[node](*args, **kwargs)
                origin = {key: node.meta[key] for key in ORIGIN if key in node.meta}
                mapping[node].meta.update(origin)
            elif node.op == "call_function":
                mapping[node] = self.copy(node, mapping, evaluate)
        return mapping

    def evaluate(self, node: fx.Node) -> None:
        """Computes a node's fake value anew, after its arguments changed."""

        def value(item: Any) -> Any:
            return item.meta["val"] if isinstance(item, fx.Node) else item

        args, kwargs = pytree.tree_map_only(fx.Node, value, (node.args, node.kwargs))
        with self.fake_mode, torch.no_grad():
            node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]

    def finish(self, outputs: Mapping[str, fx.Node], dimensions: Mapping[str, str]) -> Graph:
        """The graph, with dead nodes and unused weights removed; inputs stay, used or not."""
        self.graph.output(tuple(outputs.values()))
        for node in reversed(list(self.graph.nodes)):
            unused = not node.users and node.op != "output"
            if unused and (node.op == "call_function" or node.name in self.weights):
                self.graph.erase_node(node)
        remaining = {node.name for node in self.graph.nodes}
        module = fx.GraphModule(torch.nn.Module(), self.graph)
        return Graph(
            module=module,
            weights={name: weight for name, weight in self.weights.items() if name in remaining},
            inputs=tuple(self.inputs),
            outputs=tuple(outputs),
            dimensions=dict(dimensions),
        )


def builder_with_inputs(graph: Graph) -> tuple[Builder, dict[str, fx.Node]]:
    """A builder that begins with the inputs of a graph, and input name → node."""
    builder = Builder(fake_mode_of(graph))
    inputs = {name: builder.input(name, graph.node(name).meta["val"]) for name in graph.inputs}
    return builder, inputs


def fake_mode_of(graph: Graph) -> FakeTensorMode:
    """The fake tensor mode that the values of a graph belong to."""
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch._subclasses.FakeTensor):
            return value.fake_mode
    raise ValueError("the graph has no fake tensors")

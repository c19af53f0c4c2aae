"""A graph of a program: a functional ATen FX graph with named inputs, outputs and weights."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

Size = int | torch.SymInt


@dataclass(frozen=True)
class Graph:
    """One graph of a program.

    Placeholders come in two kinds: those in `weights` stand for a tensor of `Program.weights`, the
    others are the inputs, in order, and are named as such. The output node returns a tuple in the
    order of `outputs`. Every tensor node carries a fake tensor in `meta["val"]`; sizes that a
    request decides are symbolic there.

    Attributes:
        module: the FX graph module; it owns no parameters.
        weights: placeholder name → name in `Program.weights`.
        inputs: placeholder names, in call order.
        outputs: output names, in the order of the output tuple.
        dimensions: name of a symbolic size → its symbol in `meta["val"]`, such as {"batch": "s44"}.
    """

    module: fx.GraphModule
    weights: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dimensions: Mapping[str, str] = field(default_factory=dict)

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    def node(self, name: str) -> fx.Node:
        """The placeholder of an input, by name."""
        node: fx.Node
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.name == name:
                return node
        raise KeyError(name)

    def output_nodes(self) -> dict[str, fx.Node]:
        """Output name → the node whose value is returned."""
        (values,) = self.graph.output_node().args
        return dict(zip(self.outputs, values, strict=True))  # type: ignore[arg-type]

    def copied(self) -> "Graph":
        """A copy whose nodes may be changed; fake tensors in `meta` are shared."""
        module = fx.GraphModule(torch.nn.Module(), copy_graph(self.graph))
        return replace(self, module=module)

    def run(
        self, weights: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Runs the graph in PyTorch, without gradients."""
        arguments = [
            weights[self.weights[name]] if name in self.weights else inputs[name]
            for name in placeholders(self.graph)
        ]
        with torch.no_grad():
            values = self.module(*arguments)
        return dict(zip(self.outputs, values, strict=True))


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy of the nodes that shares the `meta` values."""
    new = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        mapping[node] = new.node_copy(node, lambda old: mapping[old])
        mapping[node].meta = copy.copy(node.meta)
    return new


def placeholders(graph: fx.Graph) -> list[str]:
    """Placeholder names in call order."""
    return [node.name for node in graph.nodes if node.op == "placeholder"]


def value(node: fx.Node) -> Any:
    """The fake tensor (or symbolic int, or tuple of these) a node computes."""
    return node.meta["val"]


def shape(node: fx.Node) -> tuple[Size, ...]:
    """The shape of a tensor node; sizes a request decides are symbolic."""
    return tuple(node.meta["val"].shape)


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """The tensor-valued input nodes, each once, in argument order."""
    return [item for item in node.all_input_nodes if isinstance(item.meta.get("val"), torch.Tensor)]


def hint(size: Size) -> int:
    """The example value of a size: the size itself, or what the symbol stood for when traced."""
    return size if isinstance(size, int) else int(size.node.hint)


def numel(sizes: Iterable[Size]) -> int:
    """The number of elements at the traced sizes."""
    product = 1
    for size in sizes:
        product *= hint(size)
    return product

"""Runs a graph node by node, so that runs that differ late share what they have in common."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from optimize.ir.graph import Graph

Compute = Callable[..., Any]
"""Computes a node from the values of its arguments."""


class Replay:
    """One run of a graph on given inputs, which can be halted before a node and continued.

    Args:
        graph: what to run; it stays as it is.
        weights: name → tensor.
        inputs: input name → tensor.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, torch.Tensor],
        inputs: Mapping[str, torch.Tensor],
    ) -> None:
        self._nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
        self._last_use = _last_uses(self._nodes)
        self._outputs = graph.output_nodes()
        self._values: dict[fx.Node, Any] = {}
        self._place = 0
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                name = node.name
                self._values[node] = (
                    weights[graph.weights[name]] if name in graph.weights else inputs[name]
                )

    def advance(self, node: fx.Node) -> None:
        """Runs everything before a node, which must lie ahead."""
        self._place = self._run(self._values, self._nodes.index(node), {})

    def value(self, node: fx.Node) -> Any:
        """The value of an input of the node that the run was halted before."""
        return self._values[node]

    def arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, by position and by name, of the node that the run was halted before."""
        arguments: tuple[tuple[Any, ...], dict[str, Any]]
        arguments = fx.map_arg((node.args, node.kwargs), self._values.__getitem__)
        return arguments

    def output(self, name: str, instead: Mapping[fx.Node, Compute] | None = None) -> torch.Tensor:
        """What the rest of the graph returns from here; the run itself stays where it is.

        Args:
            name: of the output.
            instead: node → what computes it in place of its op, from the node's arguments.
        """
        values = dict(self._values)
        self._run(values, len(self._nodes), instead or {})
        result: torch.Tensor = values[self._outputs[name]]
        return result

    def _run(
        self, values: dict[fx.Node, Any], stop: int, instead: Mapping[fx.Node, Compute]
    ) -> int:
        with torch.no_grad():
            for place in range(self._place, stop):
                node = self._nodes[place]
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                compute: Any = instead.get(node, node.target)
                values[node] = compute(*args, **kwargs)
                for dead in self._last_use.get(place, ()):
                    del values[dead]
        return stop


def _last_uses(nodes: Sequence[fx.Node]) -> dict[int, list[fx.Node]]:
    """Place of a node → the values that nothing needs after it; outputs stay."""
    place = {node: number for number, node in enumerate(nodes)}
    last: dict[int, list[fx.Node]] = {}
    for node in nodes:
        if any(user.op == "output" for user in node.users):
            continue
        final = max((place[user] for user in node.users), default=place[node])
        last.setdefault(final, []).append(node)
    return last

"""Several steps of a loop as one graph: fewer engine calls, and one graph for an engine to plan.

    Repeat(steps=(a, a, b, a, a))             Repeat(steps=(aa, ba, a), stride=2)
    a: latent = step(latent, row)     ───▶    aa: latent = step(step(latent, rows[0]), rows[1])

Weights stay shared. Rows of tables and draws of noise come stacked, one per step, so tables, noise
and numbers are those of the program as it was.
"""

from dataclasses import replace

import torch
from torch import fx

from optimize.ir.builder import Builder, fake_mode_of
from optimize.ir.errors import RecipeError
from optimize.ir.exporting import check_form
from optimize.ir.graph import Graph
from optimize.ir.program import Program, with_repeat
from optimize.runtime.loop import Binding, Call, Destination, Repeat

aten = torch.ops.aten


def unrolled(program: Program, count: int | None = None) -> Program:
    """The program with `count` steps per call; None means all of them.

    The last call has fewer steps where `count` does not divide them.

    Raises:
        RecipeError: `count` is below 1, or the steps of the loop cannot be joined.
    """
    repeat = _joinable(program)
    steps = len(repeat.steps)
    check_form("unrolled", count)
    count = steps if count is None else min(count, steps)
    groups = [repeat.steps[first : first + count] for first in range(0, steps, count)]
    names = {group: f"steps_{index}" for index, group in enumerate(dict.fromkeys(groups))}
    joined = {name: _Joined(program, repeat, group) for group, name in names.items()}
    new = Repeat(
        steps=tuple(names[group] for group in groups),
        bodies={name: (made.call(name),) for name, made in joined.items()},
        stride=count,
    )
    body = with_repeat(program, new)
    called = {item.graph for item in body if isinstance(item, Call)}
    graphs = {name: graph for name, graph in program.graphs.items() if name in called}
    graphs |= {name: made.graph for name, made in joined.items()}
    # A slot is read by the first step of a call and written by the last, not by one node.
    slots = tuple(slot.model_copy(update={"in_place": False}) for slot in program.loop.slots)
    loop = program.loop.model_copy(update={"body": body, "slots": slots})
    return replace(program, graphs=graphs, loop=loop, plan=None)


def _joinable(program: Program) -> Repeat:
    """The loop of a program whose steps can be joined."""
    found = [item for item in program.loop.body if isinstance(item, Repeat)]
    if len(found) != 1 or not found[0].steps:
        raise RecipeError(
            f"unroll: found {len(found)} loops with steps in the program, expected one; export it "
            'with loop="step"'
        )
    (repeat,) = found
    items = [item for name in repeat.steps for item in repeat.bodies[name]]
    if (
        repeat.until is not None
        or repeat.stride != 1
        or not all(isinstance(i, Call) for i in items)
    ):
        raise RecipeError(
            "unroll: found a loop that ends early, has joined steps already or holds another loop, "
            'expected a plain one; export it with loop="step"'
        )
    called = {item.graph for item in items if isinstance(item, Call)}
    modes = {id(fake_mode_of(program.graphs[name])) for name in called}
    if len(modes) > 1:
        raise RecipeError(
            f"unroll: found graphs {sorted(called)} traced apart, whose sizes are different "
            'symbols, expected graphs of one capture; export it with loop="step"'
        )
    return repeat


class _Joined:
    """The calls of some steps, one after the other, as one graph and one call."""

    def __init__(self, program: Program, repeat: Repeat, group: tuple[str, ...]) -> None:
        self._program = program
        self._steps = len(group)
        self._inputs: dict[str, Binding] = {}
        self._outputs: dict[str, Destination] = {}
        self._nodes: dict[Binding, fx.Node] = {}
        self._state: dict[str, fx.Node] = {}
        self._results: dict[str, fx.Node] = {}
        calls = [
            (call, step)
            for step, name in enumerate(group)
            for call in repeat.bodies[name]
            if isinstance(call, Call)
        ]
        first = program.graphs[calls[0][0].graph]
        self._builder = Builder(fake_mode_of(first))
        for call, step in calls:
            self._inline(call, step)
        for slot, node in self._state.items():
            self._put(f"{slot}_next", node, Destination(state=slot))
        self.graph: Graph = self._builder.finish(self._results, first.dimensions)

    def call(self, graph: str) -> Call:
        """The call of the joined graph under its name in the program."""
        return Call(graph=graph, inputs=self._inputs, outputs=self._outputs)

    def _inline(self, call: Call, step: int) -> None:
        graph = self._program.graphs[call.graph]
        arguments = {
            name: self._argument(binding, step, graph.node(name).meta["val"])
            for name, binding in call.inputs.items()
        }
        made = self._builder.inline(graph, arguments)
        for name, destination in call.outputs.items():
            if destination.state is not None:
                self._state[destination.state] = made[name]
            else:
                self._put(f"{destination.append}_{len(self._results)}", made[name], destination)

    def _argument(self, binding: Binding, step: int, value: torch.Tensor) -> fx.Node:
        """What a binding means at a step of the group; `value` is what the graph takes."""
        if binding.source == "state" and binding.name in self._state:
            return self._state[binding.name]
        if binding.source in ("state", "request"):
            return self._input(binding, value)
        stacked = self._builder.fake((self._steps, *value.shape), value.dtype)
        rows = self._input(binding.model_copy(update={"steps": self._steps}), stacked)
        return self._builder.call(aten.select.int, rows, 0, step)

    def _input(self, binding: Binding, value: torch.Tensor) -> fx.Node:
        """The input of a binding; the same one when asked for again."""
        if binding not in self._nodes:
            name = binding.name.replace(".", "_")
            name = name if binding.steps is None else f"{name}_{binding.source}"
            while name in self._inputs:
                name += "_"
            self._inputs[name] = binding
            self._nodes[binding] = self._builder.input(name, value)
        return self._nodes[binding]

    def _put(self, name: str, node: fx.Node, destination: Destination) -> None:
        self._results[name] = node
        self._outputs[name] = destination

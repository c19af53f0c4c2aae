"""How the steps of a loop become engine calls: one each, several at once, or an ONNX `Loop`.

The forms give the same numbers. "step" returns to the driver after each step, which can then show
progress; "unrolled" and "onnx_loop" save those returns, the first with a graph as long as its
steps, the second with one of constant size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimize.export.to_onnx import OnnxGraph, free_name
from optimize.ir.errors import RecipeError
from optimize.ir.exporting import LoopForm, check_form
from optimize.ir.program import Program, denoising_repeat, with_repeat
from optimize.ir.unroll import unrolled
from optimize.runtime.loop import Binding, Call, Loop, calls


def in_form(program: Program, form: LoopForm, unroll: int | None = None) -> Program:
    """The program whose graphs the form is made of.

    Args:
        form: "unrolled" joins steps; "onnx_loop" makes one graph of all calls of a step.
        unroll: steps per call of "unrolled"; None means all.
    Raises:
        RecipeError: an unknown form, or one that the loop of the program cannot have.
    """
    check_form(form, unroll)
    if form == "step":
        return program
    if form == "unrolled":
        return unrolled(program, unroll)
    joined = unrolled(program, 1)
    bodies = sorted(set(denoising_repeat(program).steps))
    if len(bodies) > 1:
        raise RecipeError(
            f'loop="onnx_loop": found steps of different bodies ({", ".join(bodies)}), expected '
            'all alike; export with loop="unrolled"'
        )
    (call,) = calls((denoising_repeat(joined),))
    if any(destination.append is not None for destination in call.outputs.values()):
        raise RecipeError(
            'loop="onnx_loop": found a result that grows by each step, expected state only; '
            'export with loop="unrolled"'
        )
    return joined


@dataclass(frozen=True)
class LoopGraph:
    """A graph that runs all steps.

    Attributes:
        name: of the graph, which was one step.
        graph: the ONNX model.
        loop: of the program, with one call in the place of the repeat.
    """

    name: str
    graph: OnnxGraph
    loop: Loop


def as_onnx_loop(program: Program, graphs: Mapping[str, OnnxGraph]) -> LoopGraph:
    """Puts the one step graph of a program into an ONNX `Loop`.

    State is carried from step to step. The rows of the tables lie in the graph and are taken by
    the number of the step, as are those of the noise, which comes as one input [steps, ...].

    Args:
        program: as `in_form` makes it for "onnx_loop".
        graphs: its graphs as ONNX.
    """
    repeat = denoising_repeat(program)
    (call,) = calls((repeat,))
    steps = len(repeat.steps)
    outer = _Outer(graphs[call.graph], steps)
    inputs: dict[str, Binding] = {}
    initial: dict[str, str] = {}
    for name, binding in call.inputs.items():
        if binding.source == "table":
            outer.take_table(name, program.tables[binding.name][:steps])
        elif binding.source == "noise":
            outer.take_noise(name)
            inputs[name] = binding.model_copy(update={"steps": steps})
        else:
            inputs[name] = binding
            if binding.source == "state":
                initial[binding.name] = name
    for name, destination in call.outputs.items():
        slot = str(destination.state)
        # A slot that no step reads is carried, too: it must have a value before the first step.
        given = initial.get(slot, f"{name}_before")
        inputs[given] = Binding(source="state", name=slot)
        outer.carry(given, name)
    for name in inputs:
        outer.share(name)
    whole = Call(graph=call.graph, inputs=inputs, outputs=call.outputs)
    loop = program.loop.model_copy(update={"body": with_repeat(program, whole)})
    return LoopGraph(call.graph, outer.finished(), loop)


def tables_of(loop: Loop, tables: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The tables that a loop reads."""
    bindings = [binding for call in calls(loop.body) for binding in call.inputs.values()]
    bindings += [slot.initial for slot in loop.slots if slot.initial is not None]
    read = {binding.name for binding in bindings if binding.source == "table"}
    return {name: table for name, table in tables.items() if name in read}


class _Outer:
    """The graph around a `Loop` whose body is a step's graph."""

    def __init__(self, step: OnnxGraph, steps: int) -> None:
        self._step, self._steps = step, steps
        graph = step.model.graph
        self._types = {item.name: item for item in (*graph.input, *graph.output)}
        self._taken = {*self._types, *(item.name for item in graph.initializer)}
        self._taken |= {name for node in graph.node for name in (*node.input, *node.output)}
        self._initializers = list(graph.initializer)
        self._inputs: dict[str, onnx.ValueInfoProto] = {}
        self._outputs: dict[str, onnx.ValueInfoProto] = {}
        self._initial: list[str] = []
        self._number, self._goes_on = self._name("step_number"), self._name("goes_on")
        self._row, self._stays = self._name("row"), self._name("goes_on_still")
        vector = self._constant("vector", np.array([-1], dtype=np.int64))
        self._body_inputs = [
            helper.make_tensor_value_info(self._number, TensorProto.INT64, []),
            helper.make_tensor_value_info(self._goes_on, TensorProto.BOOL, []),
        ]
        self._body_outputs = [helper.make_tensor_value_info(self._stays, TensorProto.BOOL, [])]
        self._nodes = [
            helper.make_node("Identity", [self._goes_on], [self._stays]),
            helper.make_node("Reshape", [self._number, vector], [self._row]),
        ]

    def take_table(self, name: str, table: NDArray[Any]) -> None:
        """Binds an input of the step to the rows of a table."""
        inside = self._step.inputs[name]
        rows = self._constant(f"{inside}_rows", np.ascontiguousarray(table))
        self._nodes.append(helper.make_node("Gather", [rows, self._row], [inside]))

    def take_noise(self, name: str) -> None:
        """Binds an input [1, ...] of the step to the draws [steps, ...] that a caller gives."""
        inside = self._step.inputs[name]
        drawn = self._renamed(self._types[inside], f"{inside}_draws")
        drawn.type.tensor_type.shape.dim[0].dim_value = self._steps
        self._inputs[name] = drawn
        self._nodes.append(helper.make_node("Gather", [drawn.name, self._row], [inside]))

    def carry(self, given: str, made: str) -> None:
        """Hands what the step makes to the input `given` of the next step."""
        after = self._types[self._step.outputs[made]]
        before = self._types.get(self._step.inputs.get(given, ""))
        inside = self._renamed(after, given) if before is None else before
        self._body_inputs.append(inside)
        self._body_outputs.append(after)
        self._inputs[given] = self._renamed(after, f"{inside.name}_initial")
        self._initial.append(self._inputs[given].name)
        self._outputs[made] = self._renamed(after, f"{after.name}_final")

    def share(self, name: str) -> None:
        """Lets the step read an input that is the same at every step."""
        if name not in self._inputs:
            self._inputs[name] = self._types[self._step.inputs[name]]

    def finished(self) -> OnnxGraph:
        """The whole graph."""
        model = onnx.ModelProto()
        model.CopyFrom(self._step.model)
        step = model.graph
        count = self._constant("step_count", np.array(self._steps, dtype=np.int64))
        body = helper.make_graph(
            [*self._nodes, *step.node], f"{step.name}_body", self._body_inputs, self._body_outputs
        )
        results = [item.name for item in self._outputs.values()]
        loop = helper.make_node("Loop", [count, "", *self._initial], results, "steps", body=body)
        whole = helper.make_graph(
            [loop], step.name, [*self._inputs.values()], [*self._outputs.values()]
        )
        whole.initializer.extend(self._initializers)
        model.graph.CopyFrom(whole)
        return OnnxGraph(
            model=model,
            inputs={name: item.name for name, item in self._inputs.items()},
            outputs={name: item.name for name, item in self._outputs.items()},
        )

    def _name(self, wanted: str) -> str:
        return free_name(wanted, self._taken, "_")

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        self._initializers.append(numpy_helper.from_array(array, self._name(name)))
        return str(self._initializers[-1].name)

    def _renamed(self, typed: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
        item = onnx.ValueInfoProto()
        item.CopyFrom(typed)
        item.name = self._name(name)
        return item

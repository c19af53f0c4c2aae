"""The spec check finds each way in which a rewrite can break a graph or a loop."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import fx

from optimize.ir.errors import PassError
from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.ir.spec import check_graph, check_program
from optimize.runtime.loop import Binding, Call, Destination, Loop, Repeat

aten = torch.ops.aten


def node_of(graph: Graph, target: object) -> fx.Node:
    return next(node for node in graph.graph.nodes if node.target is target)


def test_a_captured_program_passes(toy_program: Program) -> None:
    check_program(toy_program)


def in_place(graph: Graph) -> None:
    node_of(graph, aten.mul.Tensor).target = aten.mul_.Tensor


def no_value(graph: Graph) -> None:
    del node_of(graph, aten.mul.Tensor).meta["val"]


def wrong_shape(graph: Graph) -> None:
    node = node_of(graph, aten.scaled_dot_product_attention.default)
    node.meta["val"] = node.meta["val"].squeeze(1)


def wrong_dtype(graph: Graph) -> None:
    node = node_of(graph, aten.linear.default)
    node.meta["val"] = node.meta["val"].double()


def wrong_argument(graph: Graph) -> None:
    node = node_of(graph, aten.linear.default)
    node.args = (node.args[0], node.args[2], node.args[2])


def baked_batch(graph: Graph) -> None:
    node = node_of(graph, aten.view.default)
    node.args = (node.args[0], [2, 1, 6, 4])


def python_function(graph: Graph) -> None:
    node_of(graph, aten.mul.Tensor).target = torch.mul


def outputs_lost(graph: Graph) -> None:
    graph.graph.output_node().args = ((),)


BROKEN_GRAPHS: list[tuple[Callable[[Graph], None], str]] = [
    (in_place, "found aten.mul_.Tensor, which writes its input; expected the functional aten.mul."),
    (no_value, "found no meta['val']"),
    (wrong_shape, "found meta['val'] float32 [3, 6, 4], expected float32 [3, 1, 6, 4]"),
    (wrong_dtype, "found meta['val'] float64 [3, 1, 6, 4], expected float32 [3, 1, 6, 4]"),
    (wrong_argument, "aten.linear.default cannot run"),
    (baked_batch, "aten.view.default cannot run with s"),
    (python_function, "expected an op overload such as aten.add.Tensor"),
    (outputs_lost, "output: found 0 values, expected 1: ['prediction']"),
]


@pytest.mark.parametrize(("breaks", "expected"), BROKEN_GRAPHS, ids=lambda item: str(item)[:25])
def test_broken_graph_is_named(
    toy_program: Program, breaks: Callable[[Graph], None], expected: str
) -> None:
    graph = toy_program.graphs["denoiser"].copied()
    breaks(graph)
    graph.module.recompile()
    with pytest.raises(PassError) as caught:
        check_graph(graph, "some_pass")
    message = str(caught.value)
    assert message.startswith("some_pass: left a program that breaks its specification")
    assert expected in message
    with pytest.raises(PassError, match="graph 'denoiser': "):
        check_program(replace(toy_program, graphs={**toy_program.graphs, "denoiser": graph}))


def test_changed_nodes_must_be_compiled(toy_program: Program) -> None:
    graph = toy_program.graphs["denoiser"].copied()
    node_of(graph, aten.mul.Tensor).args = (node_of(graph, aten.mul.Tensor).args[0], 0.5)
    with pytest.raises(PassError, match=r"call module.recompile\(\)"):
        check_graph(graph)
    graph.module.recompile()
    check_graph(graph)


def test_names_must_agree_with_placeholders(toy_program: Program) -> None:
    graph = toy_program.graphs["denoiser"]
    with pytest.raises(PassError, match="expected the inputs"):
        check_graph(replace(graph, inputs=("latent",)))
    with pytest.raises(PassError, match="found no placeholder of this name"):
        check_graph(replace(graph, weights={**graph.weights, "surprise": "query.weight"}))


def test_weights_must_exist_with_their_shape(toy_program: Program) -> None:
    rest = {k: v for k, v in toy_program.weights.items() if k != "query.weight"}
    with pytest.raises(PassError, match="found no tensor 'query.weight'"):
        check_program(replace(toy_program, weights=rest))
    wrong = {**toy_program.weights, "query.weight": torch.zeros(4, 5)}
    with pytest.raises(PassError, match=r"found float32 \[4, 5\], expected float32 \[4, 4\]"):
        check_program(replace(toy_program, weights=wrong))


def changed(loop: Loop, **parts: object) -> Loop:
    """The loop with its denoiser call changed."""
    (repeat,) = loop.body
    assert isinstance(repeat, Repeat)
    first, *rest = repeat.bodies["step"]
    assert isinstance(first, Call)
    call = first.model_copy(update=parts)
    return loop.model_copy(
        update={"body": (repeat.model_copy(update={"bodies": {"step": (call, *rest)}}),)}
    )


def state(name: str) -> Binding:
    return Binding(source="state", name=name)


def inputs(toy_program: Program) -> dict[str, Binding]:
    (repeat,) = toy_program.loop.body
    assert isinstance(repeat, Repeat) and isinstance(repeat.bodies["step"][0], Call)
    return dict(repeat.bodies["step"][0].inputs)


def test_loop_must_name_what_exists(toy_program: Program) -> None:
    given = inputs(toy_program)
    cases: list[tuple[dict[str, object], str]] = [
        ({"graph": "decoder"}, "call of 'decoder': found no such graph, known: "),
        ({"inputs": {"latent": state("latent")}}, "found inputs ['latent'], expected ['latent', "),
        ({"inputs": {**given, "latent": state("x")}}, "found no state 'x', known: ['latent', "),
        (
            {"inputs": {**given, "shift": Binding(source="request", name="y")}},
            "input 'shift': found no request 'y', known: ['shift']",
        ),
        (
            {"inputs": {**given, "timestep": Binding(source="table", name="coefficients")}},
            "input 'timestep': found float32 [1, 2], expected float32 []",
        ),
        ({"outputs": {"prediction": Destination(state="z")}}, "found no slot 'z'"),
        ({"outputs": {"other": Destination(state="latent")}}, "found unknown outputs ['other']"),
        (
            {"outputs": {"prediction": Destination(append="frames")}},
            "signature: found outputs ['latent'], expected the results of the loop ['frames', ",
        ),
    ]
    for parts, expected in cases:
        with pytest.raises(PassError) as caught:
            check_program(replace(toy_program, loop=changed(toy_program.loop, **parts)))
        assert expected in str(caught.value)


def test_tables_need_a_row_per_step(toy_program: Program) -> None:
    short = {**toy_program.tables, "timestep": toy_program.tables["timestep"][:3]}
    with pytest.raises(PassError, match="table 'timestep' with 3 rows, expected at least 4"):
        check_program(replace(toy_program, tables=short))


def test_slots_must_fit_what_is_written_and_read(toy_program: Program) -> None:
    slots = tuple(
        slot.model_copy(update={"dtype": "float64"}) if slot.name == "prediction" else slot
        for slot in toy_program.loop.slots
    )
    with pytest.raises(PassError) as caught:
        check_program(
            replace(toy_program, loop=toy_program.loop.model_copy(update={"slots": slots}))
        )
    assert (
        "call of 'denoiser', output 'prediction': found float32 [2, 6, 4], "
        "expected float64 [2, 6, 4]" in str(caught.value)
    )
    assert (
        "call of 'solver', input 'prediction': found float64 [2, 6, 4], "
        "expected float32 [2, 6, 4]" in str(caught.value)
    )


def test_results_and_until_need_slots(toy_program: Program) -> None:
    loop = toy_program.loop.model_copy(update={"results": {"latent": "nothing"}})
    with pytest.raises(PassError, match="result 'latent': found no slot 'nothing'"):
        check_program(replace(toy_program, loop=loop))
    (repeat,) = toy_program.loop.body
    loop = toy_program.loop.model_copy(
        update={"body": (repeat.model_copy(update={"until": "latent"}),)}
    )
    with pytest.raises(PassError, match="`until` slot 'latent' of float32, expected bool"):
        check_program(replace(toy_program, loop=loop))

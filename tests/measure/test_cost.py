"""Operation counts against hand counts and PyTorch's own counter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from optimize.ir.graph import Graph, copy_graph
from optimize.ir.program import Program
from optimize.measure.cost import (
    graph_bytes,
    graph_costs,
    graph_flops,
    program_bytes,
    program_calls,
    program_costs,
    program_flops,
)
from optimize.runtime.loop import Loop, Repeat


class Function(nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.function(*tensors)


def graph_of(function: Callable[..., torch.Tensor], *shapes: tuple[int, ...]) -> Graph:
    tensors = tuple(torch.zeros(shape) for shape in shapes)
    exported = torch.export.export(Function(function), tensors).run_decompositions({})
    module = torch.fx.GraphModule(nn.Module(), copy_graph(exported.graph))
    return Graph(module, {}, tuple(exported.graph_signature.user_inputs), ("out",))  # type: ignore[arg-type]


functional = nn.functional

PRODUCTS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...], float]] = {
    "linear": (functional.linear, ((3, 5, 8), (16, 8)), 2 * 15 * 16 * 8),
    "mm": (torch.mm, ((3, 8), (8, 5)), 2 * 3 * 8 * 5),
    "addmm": (torch.addmm, ((5,), (3, 8), (8, 5)), 2 * 3 * 8 * 5),
    "bmm": (torch.bmm, ((2, 3, 8), (2, 8, 5)), 2 * 2 * 3 * 8 * 5),
    "baddbmm": (torch.baddbmm, ((2, 3, 5), (2, 3, 8), (2, 8, 5)), 2 * 2 * 3 * 8 * 5),
    "matmul": (torch.matmul, ((4, 2, 3, 8), (2, 8, 5)), 2 * 8 * 3 * 8 * 5),
    "conv2d": (functional.conv2d, ((1, 3, 8, 8), (6, 3, 3, 3)), 2 * 6 * 36 * 27),
    "attention": (
        functional.scaled_dot_product_attention,
        ((1, 2, 3, 8), (1, 2, 7, 8), (1, 2, 7, 8)),
        2 * 2 * 3 * 7 * 16,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_equal_hand_count_and_torch(name: str) -> None:
    function, shapes, expected = PRODUCTS[name]
    assert graph_flops(graph_of(function, *shapes)) == expected
    if name == "attention":
        return  # PyTorch does not count its own attention on a CPU
    with FlopCounterMode(display=False) as counter:
        function(*(torch.zeros(shape) for shape in shapes))
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (
            lambda x, y: torch.einsum("bqd,bkd->bqk", x, y),
            ((2, 3, 4), (2, 5, 4)),
            2 * 2 * 3 * 5 * 4,
        ),
        (lambda x, y: torch.einsum("...d,de->...e", x, y), ((2, 3, 4), (4, 5)), 2 * 6 * 4 * 5),
        (lambda x, w: functional.conv2d(x, w, groups=2), ((1, 4, 5, 5), (6, 2, 1, 1)), 2 * 150 * 2),
        (functional.conv_transpose2d, ((1, 3, 4, 4), (3, 5, 2, 2)), 2 * 48 * 20),
    ],
)
def test_other_products(
    function: Callable[..., torch.Tensor], shapes: tuple[tuple[int, ...], ...], expected: int
) -> None:
    assert graph_flops(graph_of(function, *shapes)) == expected


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (lambda x: x * 2 + x, ((3, 4),), 24),
        (lambda x: x.sum(1), ((3, 4),), 12),
        (lambda x: functional.layer_norm(x, (4,)), ((3, 4),), 12),
        (lambda x: x.transpose(0, 1).reshape(12).repeat(2), ((3, 4),), 0),
        (lambda w: functional.embedding(torch.zeros(5, dtype=torch.int64), w), ((9, 4),), 0),
        (lambda x: torch.cat([x, x])[1:], ((3, 4),), 0),
        (
            lambda x: torch.ops.optimize.gather_rows(x, torch.zeros(2, 3, dtype=torch.int64), 1),
            ((2, 5, 4),),
            0,
        ),
    ],
)
def test_elementwise_counts_elements_and_moving_counts_none(
    function: Callable[..., torch.Tensor], shapes: tuple[tuple[int, ...], ...], expected: int
) -> None:
    assert graph_flops(graph_of(function, *shapes)) == expected


def test_bytes_are_inputs_and_outputs_and_views_are_free() -> None:
    assert graph_bytes(graph_of(lambda x: (x + 1).view(12), (3, 4))) == 2 * 12 * 4


def test_program_counts_each_step(toy_program: Program) -> None:
    assert program_calls(toy_program) == {"denoiser": 4, "solver": 4}
    parts = [graph_flops(graph) for graph in toy_program.graphs.values()]
    assert program_flops(toy_program) == 4 * sum(parts) > 0
    assert program_bytes(toy_program) > 0


def test_costs_name_nodes_and_ops(toy_program: Program) -> None:
    costs = {cost.op: cost for cost in graph_costs(toy_program.graphs["denoiser"])}
    attention = costs["aten.scaled_dot_product_attention"]
    assert attention.flops == 2 * 2 * 6 * 6 * (4 + 4)
    assert attention.name in {node.name for node in toy_program.graphs["denoiser"].graph.nodes}


def test_costs_of_a_program_are_those_of_all_calls(toy_program: Program) -> None:
    costs = program_costs(toy_program)
    assert costs["flops"] == program_flops(toy_program)
    assert costs["bytes"] == program_bytes(toy_program)
    assert costs["engine_calls"] == sum(program_calls(toy_program).values()) == 8
    denoiser = costs["graphs"]["denoiser"]
    assert denoiser["flops"] == 4 * graph_flops(toy_program.graphs["denoiser"])
    assert denoiser["ops"]["aten.linear"] == 2
    assert sum(denoiser["ops"].values()) == denoiser["nodes"]


def test_costs_count_the_engine_calls_of_another_loop(toy_program: Program) -> None:
    once = replace_body(toy_program.loop)
    costs = program_costs(toy_program, once)
    assert costs["engine_calls"] == costs["graphs"]["denoiser"]["calls"] == 1
    assert costs["flops"] == program_flops(toy_program)


def replace_body(loop: Loop) -> Loop:
    """The loop with its first call only."""
    (repeat,) = loop.body
    assert isinstance(repeat, Repeat)
    return loop.model_copy(update={"body": (repeat.bodies["step"][0],)})

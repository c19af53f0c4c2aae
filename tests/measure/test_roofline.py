"""Predicted seconds against hand computation, and what named machines must be."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from optimize.ir.errors import RecipeError
from optimize.ir.graph import Graph, copy_graph
from optimize.ir.program import Program
from optimize.measure.cost import graph_flops
from optimize.measure.kernels import Kernel, graph_kernels
from optimize.measure.roofline import (
    MACHINES,
    Machine,
    error_stated,
    kernel_seconds,
    machine_named,
    predict_graph,
    predict_seconds,
    predictions,
    this_cpu,
)
from optimize.measure.this_cpu import ATTENTION, LARGE, ROWS, WIDTH, machine_from

functional = nn.functional

PLAIN = Machine("plain", {"float32": 1e9, "float16": 4e9}, 1e9, 1e-6, 1e-5)
"""Fuses, and has nothing else: 1 GFLOP/s, 1 GB/s, 1 us per launch, 10 us per call."""


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.function(*tensors)


def graph_of(
    function: Callable[..., Any], *shapes: tuple[int, ...], weights: int = 0, dtype: Any = None
) -> Graph:
    """A graph of a function of tensors, of which the last `weights` are weights."""
    tensors = tuple(torch.zeros(shape, dtype=dtype) for shape in shapes)
    exported = torch.export.export(Function(function), tensors).run_decompositions({})
    module = torch.fx.GraphModule(nn.Module(), copy_graph(exported.graph))
    names = tuple(str(name) for name in exported.graph_signature.user_inputs)
    given = len(names) - weights
    outputs = tuple(f"out{place}" for place in range(len(exported.graph_signature.user_outputs)))
    return Graph(module, {name: name for name in names[given:]}, names[:given], outputs)


def test_a_linear_takes_the_longer_of_computing_and_reading() -> None:
    # 2 * 4 * 8 * 16 FLOPs; 4 bytes of each of 4 * 8 + 16 * 8 + 4 * 16 numbers.
    graph = graph_of(functional.linear, (4, 8), (16, 8), weights=1)
    assert predict_graph(graph, PLAIN) == pytest.approx(1e-5 + 1e-6 + 1024 / 1e9)
    slow = replace(PLAIN, bytes_per_second=1e8)
    assert predict_graph(graph, slow) == pytest.approx(1e-5 + 1e-6 + 4 * 224 / 1e8)


def test_few_rows_run_at_a_share_of_the_rate() -> None:
    graph = graph_of(functional.linear, (4, 8), (16, 8), weights=1)
    skinny = replace(PLAIN, half_rows=4.0)
    assert predict_graph(graph, skinny) == pytest.approx(1e-5 + 1e-6 + 2 * 1024 / 1e9)


def test_half_precision_has_a_rate_of_its_own() -> None:
    graph = graph_of(functional.linear, (64, 64), (64, 64), weights=1, dtype=torch.float16)
    assert predict_graph(graph, PLAIN) == pytest.approx(1e-5 + 1e-6 + 2 * 64**3 / 4e9)


def test_weights_that_fit_into_the_cache_are_not_read_from_memory() -> None:
    graph = graph_of(functional.linear, (1, 64), (64, 64), weights=1)
    slow = replace(PLAIN, bytes_per_second=1e6)
    cached = replace(slow, cache_bytes=1e6)
    small = replace(slow, cache_bytes=1e4)
    assert predict_graph(graph, cached) == pytest.approx(1e-5 + 1e-6 + 2 * 64**2 / 1e9)
    assert predict_graph(graph, small) == pytest.approx(1e-5 + 1e-6 + 4 * 64**2 / 1e6)


def chain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.tanh((x + y) * 2).reshape(-1).exp()


def test_a_chain_is_one_kernel_where_ops_fuse() -> None:
    graph = graph_of(chain, (8, 8), (8, 8))
    (kernel,) = graph_kernels(graph, fuses=True)
    assert (kernel.flops, kernel.bytes) == (4 * 64, 3 * 64 * 4)
    assert predict_graph(graph, PLAIN) == pytest.approx(1e-5 + 1e-6 + 768 / 1e9)
    alone = [item.kind for item in graph_kernels(graph, fuses=False)]
    assert alone == ["arithmetic", "arithmetic", "activation", "view", "activation"]


def test_a_product_between_two_elementwise_ops_is_not_fused_away() -> None:
    # exp(x) is read by the product and, after it, by the sum: one kernel of both would be a circle.
    graph = graph_of(lambda x: (e := x.exp()) + e @ e, (8, 8))
    kinds = [item.kind for item in graph_kernels(graph, fuses=True)]
    assert kinds == ["arithmetic", "product", "arithmetic"]


def test_what_is_read_outside_of_a_chain_is_written() -> None:
    graph = graph_of(lambda x: ((e := x.exp()) * 2, e), (8, 8))
    (kernel,) = graph_kernels(graph, fuses=True)
    assert kernel.bytes == 3 * 64 * 4


def test_views_cost_nothing_and_strided_ones_a_copy_where_nothing_fuses() -> None:
    graph = graph_of(lambda x: x.transpose(0, 1)[1:], (8, 8))
    assert graph_kernels(graph, fuses=True) == []
    copies = graph_kernels(graph, fuses=False)
    assert [(item.kind, item.bytes) for item in copies] == [("copy", 512), ("copy", 448)]


def test_what_depends_on_weights_only_is_free() -> None:
    graph = graph_of(lambda x, w: x + (w.exp() * 2), (8, 8), (8, 8), weights=1)
    (kernel,) = graph_kernels(graph, fuses=False)
    assert (kernel.bytes, kernel.weight_bytes) == (3 * 256, 256)


def test_a_graph_without_ops_is_a_call() -> None:
    graph = graph_of(lambda x: x, (8, 8))
    assert predict_graph(graph, PLAIN) == PLAIN.call_seconds


def test_attention_counts_scores() -> None:
    shapes = ((1, 2, 3, 8), (1, 2, 7, 8), (1, 2, 7, 8))
    graph = graph_of(functional.scaled_dot_product_attention, *shapes)
    (kernel,) = graph_kernels(graph, fuses=False)
    assert (kernel.kind, kernel.elements, kernel.rows) == ("attention", 2 * 3 * 7, 3)


def cached(rows: int) -> Graph:
    """Attention of some new rows to a cache of 16."""
    new, cache = (1, 2, rows, 8), (1, 2, 16, 8)
    lengths = torch.zeros(1, dtype=torch.int64)

    def attend(*tensors: torch.Tensor) -> Any:
        return torch.ops.optimize.cached_attention(*tensors, lengths)

    return graph_of(attend, new, new, new, cache, cache)


def test_one_new_row_reads_half_of_the_cache_and_several_copy_it() -> None:
    new, cache = 4 * 2 * 8, 4 * 2 * 16 * 8
    (one,) = graph_kernels(cached(1), fuses=False)
    assert (one.bytes, one.flops) == (4 * new + 8 + cache, 0.5 * 4 * 2 * 16 * 8)
    (several,) = graph_kernels(cached(2), fuses=False)
    assert (several.bytes, several.flops) == (2 * 4 * new + 8 + 6 * cache, 2 * 4 * 2 * 16 * 8)
    (on_gpu,) = graph_kernels(cached(2), fuses=True)
    assert on_gpu.bytes == 2 * 4 * new + 8 + cache


def test_a_solver_step_is_an_op_per_operation_where_nothing_fuses(toy_program: Program) -> None:
    solver = toy_program.graphs["solver"]
    (alone,) = [item for item in graph_kernels(solver, fuses=False) if item.launches > 1]
    elements = 2 * 6 * 4
    operations = graph_flops(solver) / elements
    assert alone.launches == operations + 1 and alone.elements == operations * elements
    assert [item.launches for item in graph_kernels(solver, fuses=True)] == [1]


def test_a_request_is_the_sum_of_its_calls(toy_program: Program) -> None:
    calls = [predict_graph(graph, PLAIN) for graph in toy_program.graphs.values()]
    assert predict_seconds(toy_program, PLAIN) == pytest.approx(4 * sum(calls))
    found = predictions(toy_program)
    expected = {name: predict_seconds(toy_program, item) for name, item in MACHINES.items()}
    assert found == expected and all(seconds > 0 for seconds in found.values())


@pytest.mark.parametrize("name", ["plain", *MACHINES])
@pytest.mark.parametrize("kind", ["product", "attention", "arithmetic"])
def test_more_work_is_never_predicted_faster(name: str, kind: str) -> None:
    machine = PLAIN if name == "plain" else MACHINES[name]
    sizes = [2.0**power for power in range(0, 40, 3)]
    for field in ("flops", "bytes", "elements"):
        seconds = [
            kernel_seconds(
                replace(Kernel(kind, 1e6, 1e6, 1e6, "float32", 16.0), **{field: size}), machine
            )
            for size in sizes
        ]
        assert seconds == sorted(seconds) and all(math.isfinite(item) for item in seconds)


def test_more_rows_are_never_predicted_faster() -> None:
    graphs = [
        graph_of(functional.linear, (rows, 256), (256, 256), weights=1)
        for rows in (1, 2, 8, 64, 512)
    ]
    for machine in (*MACHINES.values(), this_cpu()):
        seconds = [predict_graph(graph, machine) for graph in graphs]
        assert seconds == sorted(seconds)


def test_named_gpus_are_plausible() -> None:
    assert set(MACHINES) == {
        "T4", "A100 40GB SXM", "A100 80GB SXM", "L4", "L40S", "RTX 4090", "RTX 5090", "H100 SXM",
        "H200", "B200",
    }  # fmt: skip
    half = {name: machine.flops_per_second["float16"] for name, machine in MACHINES.items()}
    bandwidth = {name: machine.bytes_per_second for name, machine in MACHINES.items()}
    generations = ("T4", "L4", "RTX 4090", "A100 40GB SXM", "H100 SXM", "B200")
    assert sorted(half[name] for name in generations) == [half[name] for name in generations]
    order = ("L4", "T4", "L40S", "RTX 4090", "A100 40GB SXM", "RTX 5090", "A100 80GB SXM")
    order += ("H100 SXM", "H200", "B200")
    assert sorted(bandwidth.values()) == [bandwidth[name] for name in order]
    assert half["H100 SXM"] == half["H200"] < 0.99e15
    for machine in MACHINES.values():
        rates = machine.flops_per_second
        assert machine.fuses and rates["bfloat16"] in (rates["float16"], rates["float32"])
        assert rates["float32"] < rates["float16"]
        assert 2e-6 <= machine.launch_seconds <= 5e-6


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("h100", "H100 SXM"),
        ("H100 SXM", "H100 SXM"),
        ("rtx-4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("L4", "L4"),
    ],
)
def test_machines_are_found_by_name(given: str, name: str) -> None:
    assert machine_named(given) is MACHINES[name]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("h2000", "Did you mean H200?"),
        ("a100", "found A100 40GB SXM or A100 80GB SXM, expected one of this-cpu, T4"),
        ("my cpu", "Did you mean this-cpu?"),
        ("", "unknown machine '', expected one of this-cpu, T4"),
    ],
)
def test_unknown_machines_are_answered_with_those_known(given: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        machine_named(given)
    assert expected in str(caught.value)


def test_this_cpu_is_measured_once() -> None:
    machine = machine_named("this-cpu")
    assert machine is this_cpu() and machine.name == "this CPU, 1 thread"
    numbers = [
        *machine.flops_per_second.values(), machine.bytes_per_second, machine.launch_seconds,
        machine.call_seconds, machine.cache_bytes, *machine.kind_launch_seconds.values(),
    ]  # fmt: skip
    assert all(0 < number < math.inf for number in numbers)
    assert all(0 <= number < 1e-6 for number in machine.element_seconds.values())
    assert 0 <= machine.half_rows < 128
    assert "unmeasured" not in error_stated(machine) and not machine.fuses


def test_calibration_finds_the_machine_that_was_measured() -> None:
    """Seconds made from a known machine give that machine back."""
    peak, half, launch, each, score = 1e11, 6.0, 1e-6, 5e-10, 3e-10
    kinds = ("arithmetic", "activation", "function", "power", "softmax", "norm", "sum", "copy")
    seconds = {f"{kind} small": launch for kind in (*kinds, "view", "product", "attention")}
    seconds |= {f"{kind} large": launch + each * math.prod(LARGE) for kind in kinds}
    for rows in ROWS:
        seconds[f"product {rows}"] = launch + 2 * rows * WIDTH**2 * (1 + half / rows) / peak
    seconds |= {"product 1": launch + 1e-3, "call": 3e-5}
    batch, heads, tokens, width = ATTENTION
    scores = batch * heads * tokens**2
    products = 4 * scores * width * (1 + half / width) / peak
    seconds["attention large"] = launch + products + score * scores
    machine = machine_from("made up", seconds)
    assert machine.flops_per_second["float32"] == pytest.approx(peak)
    assert machine.half_rows == pytest.approx(half)
    assert machine.element_seconds["attention"] == pytest.approx(score)
    assert machine.element_seconds["norm"] == pytest.approx(each)
    assert (machine.call_seconds, machine.launch_seconds) == (3e-5, launch)

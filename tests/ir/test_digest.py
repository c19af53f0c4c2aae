"""Digests of programs: what they see, and what they must not see."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from optimize.capture.from_denoiser import capture
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.digest import Source, _Lines, graphs_digest, weights_digest
from optimize.ir.graph import Graph, copy_graph
from optimize.ir.program import Program
from optimize.passes.fuse_solver import FuseSolver
from optimize.passes.pipeline import run_passes
from tests.conftest import TinyDenoiser

aten = torch.ops.aten

CAPTURE = """
import torch
from tests.conftest import TinyDenoiser
from optimize.capture.from_denoiser import capture
from optimize.ir.denoise import DenoiseLoop
torch.manual_seed(0)
module = TinyDenoiser().eval()
inputs = {"hidden_states": torch.randn(3, 6, 4), "timestep": torch.ones(3), "shift": torch.ones(3)}
program = capture(module, inputs, loop=DenoiseLoop(steps=4))
print(program.source_digest.graphs, program.source_digest.weights)
"""


def changed(program: Program, change) -> Program:
    """The program whose denoiser had something done to its nodes."""
    graph = program.graphs["denoiser"].copied()
    change(graph)
    return replace(program, graphs={**program.graphs, "denoiser": graph})


def first(graph, op) -> torch.fx.Node:
    return next(node for node in graph.graph.nodes if node.target == op)


def test_another_process_with_another_batch_finds_the_same(toy_program):
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", CAPTURE], env=environment, capture_output=True, text=True, check=True
    )
    found = Source(*done.stdout.split())
    assert found == toy_program.source_digest
    assert len(found.graphs) == len(found.weights) == 64


def test_names_of_nodes_and_weight_values_do_not_count(toy_program):
    def renamed(graph):
        for node in graph.graph.nodes:
            if node.op == "call_function":
                node.name = f"another_{node.name}"

    other = changed(toy_program, renamed)
    assert graphs_digest(other.graphs) == graphs_digest(toy_program.graphs)
    fine_tuned = {name: tensor + 1e-3 for name, tensor in toy_program.weights.items()}
    other = replace(toy_program, weights=fine_tuned)
    assert other.source_digest.graphs == toy_program.source_digest.graphs
    assert other.source_digest.weights != toy_program.source_digest.weights


def test_sizes_are_called_by_what_they_are_of(toy_program):
    symbols = set(toy_program.graphs["denoiser"].dimensions.values())
    assert symbols
    lines = str(list(_Lines(toy_program.graphs["denoiser"]).all("denoiser")))
    assert "{'size': 'batch'}" in lines and not any(symbol in lines for symbol in symbols)


def test_sizes_without_a_name_are_numbered():
    """Two sizes [a, b] -> [a, a + b] differ from [b, a + b], whatever the symbols are called."""

    class Sum(torch.nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dim = dim

        def forward(self, x):
            return x.new_zeros(x.shape[self.dim], x.shape[0] + x.shape[1])

    def digest(dim, shape):
        sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        exported = torch.export.export(Sum(dim), (torch.zeros(shape),), dynamic_shapes=(sizes,))
        module = torch.fx.GraphModule(torch.nn.Module(), copy_graph(exported.graph))
        return graphs_digest({"sum": Graph(module, {}, ("x",), ("out",))})

    assert digest(0, (3, 5)) == digest(0, (7, 4)) != digest(1, (3, 5))


CHANGES = {
    "an argument": lambda graph: first(graph, aten.mul.Tensor).update_arg(1, 0.002),
    "an op": lambda graph: setattr(first(graph, aten.mul.Tensor), "target", aten.add.Tensor),
    "a weight in the place of another": lambda graph: _swap_weights(graph),
    "a dtype": lambda graph: _as_float64(first(graph, aten.mul.Tensor)),
    "an option": lambda graph: _with_option(graph),
}


def _swap_weights(graph):
    names = dict(graph.weights)
    one, other = [name for name, weight in names.items() if weight.endswith("weight")][:2]
    names[one], names[other] = names[other], names[one]
    object.__setattr__(graph, "weights", names)


def _as_float64(node):
    node.meta["val"] = node.meta["val"].double()


def _with_option(graph):
    attention = first(graph, aten.scaled_dot_product_attention.default)
    attention.kwargs = {**attention.kwargs, "scale": 0.25}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_the_result_counts(toy_program, name):
    other = changed(toy_program, CHANGES[name])
    assert graphs_digest(other.graphs) != graphs_digest(toy_program.graphs)


def test_steps_of_the_loop_are_no_part_of_the_graphs(toy_program):
    torch.manual_seed(0)
    module = TinyDenoiser().eval()
    inputs = {
        "hidden_states": torch.randn(2, 6, 4),
        "timestep": torch.ones(2),
        "shift": torch.ones(2),
    }
    other = capture(module, inputs, loop=DenoiseLoop(steps=9))
    assert other.source_digest == toy_program.source_digest


def test_weights_count_by_name_dtype_shape_and_bytes_only():
    weights = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.ones((), dtype=torch.bfloat16),
        "c": torch.ones(2, dtype=torch.complex64),
        "d": torch.zeros(0, 3),
        "e": torch.tensor([True, False]),
    }
    found = weights_digest(weights)
    assert found == weights_digest(dict(reversed(weights.items())))
    strided = weights["a"].T.contiguous().T
    assert not strided.is_contiguous() and found == weights_digest({**weights, "a": strided})
    others = [
        {"a": weights["a"] + 1},
        {"a": weights["a"].reshape(3, 2)},
        {"a": weights["a"].view(torch.int32)},
        {"b": torch.zeros((), dtype=torch.bfloat16)},
        {"c": weights["c"] * 1j},
        {"d": torch.zeros(3, 0)},
        {"e": torch.tensor([True, True])},
        {"a": weights["a"].to("meta")},
    ]
    digests = {weights_digest({**weights, **other}) for other in others}
    assert len(digests | {found}) == len(others) + 1
    assert weights_digest({"a": weights["a"]}) != weights_digest({"z": weights["a"]})


def test_passes_keep_what_the_program_was_captured_as(toy_program):
    captured = toy_program.source_digest
    assert toy_program.source is None
    once = run_passes(toy_program, [FuseSolver(steps=3)], verify=False)
    assert once.source == captured == once.source_digest
    assert graphs_digest(once.graphs) != captured.graphs
    again = run_passes(once, [], verify=False)
    assert again.source == captured


def test_a_pass_cannot_lose_or_change_it(toy_program, monkeypatch):
    rewrite = FuseSolver.rewrite

    def forgetful(self, program):
        made = rewrite(self, program)
        return replace(made, program=replace(made.program, source=None))

    monkeypatch.setattr(FuseSolver, "rewrite", forgetful)
    after = run_passes(toy_program, [FuseSolver(steps=3)], verify=False)
    assert after.source == toy_program.source_digest

"""What kernels use of GPUs, compiled here for the calls of a program."""

import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from optimize.kernels import triton_compile
from optimize.kernels.triton_compile import usage_of
from optimize.kernels.triton_forms import TRITON_FORMS
from optimize.measure import kernel_facts as module
from optimize.measure.cost import arguments_on_meta
from optimize.measure.kernel_facts import kernel_facts
from optimize.passes.fuse_solver import FuseSolver
from optimize.passes.pipeline import run_passes
from optimize.passes.tile_attention import TileAttention
from tests.passes.tiny_video import tiny_video


@pytest.fixture(scope="module")
def fused(toy_program):
    return run_passes(toy_program, [FuseSolver(steps=3)], verify=False)


@pytest.fixture(scope="module")
def video():
    program = tiny_video(dtype=torch.float32)
    return run_passes(program, [TileAttention(references=(1, 2, 3))], verify=False)


@pytest.fixture
def one_gpu(monkeypatch):
    monkeypatch.setattr(triton_compile, "ARCHITECTURES", (90,))


def test_a_solver_step_is_compiled_for_every_architecture(fused):
    facts, notes = kernel_facts(fused)
    assert notes == [] and set(facts) == {"solver_step"}
    assert set(facts["solver_step"]) == {"sm_80", "sm_90", "sm_100", "sm_120"}
    for used in facts["solver_step"].values():
        assert 8 <= used["registers"] <= 64
        assert used["spill_bytes"] == used["shared_bytes"] == 0


def test_the_most_of_any_form_counts(video, one_gpu):
    facts, notes = kernel_facts(video)
    assert notes == []
    op = torch.ops.optimize.tile_attention.default
    nodes = [node for node in video.graphs["denoiser"].graph.nodes if node.target == op]
    calls = [arguments_on_meta(node) for node in nodes]
    assert len({tuple(args[5]) for args, _ in calls}) == 3  # each layer has its references
    alone = [
        usage_of(TRITON_FORMS["optimize::tile_attention"](90, *args, **kwargs))
        for args, kwargs in calls
    ]
    assert facts["tile_attention"]["sm_90"] == {
        "registers": max(used.registers for used in alone),
        "spill_bytes": max(used.spill_bytes for used in alone),
        "shared_bytes": max(used.shared_bytes for used in alone),
    }
    assert all(used.registers > 16 and used.shared_bytes > 0 for used in alone)


def test_forms_beyond_the_most_are_said(video, one_gpu, monkeypatch):
    monkeypatch.setattr(module, "MOST_FORMS", 1)
    facts, notes = kernel_facts(video)
    assert "sm_90" in facts["tile_attention"]
    assert notes == ["kernels: tile_attention has 3 forms; the 1 of most operations were compiled"]


def test_forms_that_do_not_run_are_not_compiled(one_gpu):
    # A GPU computes attention of float64 frame by frame, without the kernel.
    wide = run_passes(tiny_video(dtype=torch.float64), [TileAttention(references=1)], verify=False)
    facts, notes = kernel_facts(wide)
    assert set(facts) == {"solver_step"} and notes == []


def test_a_program_without_triton_kernels_needs_no_triton(tiny_program, monkeypatch):
    monkeypatch.setitem(sys.modules, "optimize.kernels.triton_compile", None)
    assert kernel_facts(tiny_program()) == ({}, [])


def test_what_keeps_kernels_from_being_compiled_is_said(fused, one_gpu, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("ptxas died\nat line 3")

    monkeypatch.setitem(TRITON_FORMS, "optimize::solver_step", broken)
    expected = "kernels: solver_step does not compile for sm_90: RuntimeError: ptxas died"
    assert kernel_facts(fused) == ({}, [expected])
    monkeypatch.setitem(sys.modules, "optimize.kernels.triton_compile", None)
    facts, (note,) = kernel_facts(fused)
    assert facts == {} and note.startswith("kernels: not compiled, Triton cannot be imported")

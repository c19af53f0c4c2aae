"""The pass fuse_solver: rewrites, declines, numerics."""

import pytest
import torch

from optimize.passes.fuse_solver import FuseSolver
from optimize.passes.pass_base import Declined
from optimize.runtime.loop import calls


def test_same_solver_equals_the_plain_loop_bit_for_bit(family, captured):
    made, program = captured(family, torch.float32)
    fused = FuseSolver().rewrite(program).program
    assert set(fused.graphs) == {"step"}
    expected = program(seed=1, **made.request())["latent"]
    assert torch.equal(fused(seed=1, **made.request())["latent"], expected)


def test_euler_equals_the_plain_loop_bit_for_bit(captured):
    made, program = captured("sd3", torch.float32)
    fused = FuseSolver("euler").rewrite(program).program
    expected = program(seed=1, **made.request())["latent"]
    assert torch.equal(fused(seed=1, **made.request())["latent"], expected)


def test_one_engine_call_per_step_and_no_prediction_slot(captured):
    _, program = captured("sd3", torch.float32)
    assert len(calls(program.loop.body)) == 2
    fused = FuseSolver("dpm_solver_pp", order=3, steps=5).rewrite(program).program
    (call,) = calls(fused.loop.body)
    assert call.graph == "step"
    assert {slot.name for slot in fused.loop.slots} == {"latent", "denoised_1", "denoised_2"}
    assert fused.tables["coefficients"].shape == (5, 6)


def test_second_order_comes_closer_with_the_same_calls(captured):
    made, program = captured("sd3", torch.float32)

    def sample(solver, order, steps):
        rewritten = FuseSolver(solver, order, steps).rewrite(program).program
        return rewritten(seed=0, **made.request())["latent"]

    reference = sample("dpm_solver_pp", 2, 160)
    first = float((sample("dpm_solver_pp", 1, 16) - reference).norm())
    second = float((sample("dpm_solver_pp", 2, 16) - reference).norm())
    assert second < 0.5 * first


def test_declines_a_fused_program_and_euler_on_epsilon(captured):
    _, flow = captured("sd3", torch.float32)
    fused = FuseSolver().rewrite(flow).program
    assert FuseSolver().declines(fused) == "the solver is already fused"
    _, epsilon = captured("dit", torch.float32)
    assert "needs a flow model" in (FuseSolver("euler").declines(epsilon) or "")


def test_declines_steps_that_need_bodies_nobody_made(captured):
    from optimize.passes.cache_regions import CacheRegions

    _, program = captured("sd3", torch.float32)
    stepped = CacheRegions(keep_ratio=((0, 0.5), (10, 0.25)), warmup=2).rewrite(program).program
    with pytest.raises(Declined, match="capture with steps=16"):
        FuseSolver(steps=16).rewrite(stepped)


@pytest.mark.parametrize(
    "options",
    [{"solver": "rk45"}, {"solver": "euler", "order": 2}, {"solver": "dpm_solver_pp", "order": 4},
     {"steps": 0}, {"steps": 10**9}],
)  # fmt: skip
def test_refuses_options_out_of_range(options):
    with pytest.raises((ValueError, TypeError), match="found"):
        FuseSolver(**options)

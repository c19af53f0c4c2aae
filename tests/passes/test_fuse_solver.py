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
    assert {slot.name for slot in fused.loop.slots} == {"latent", "kept_1", "kept_2"}
    assert fused.tables["coefficients"].shape == (5, 3, 4)


class GaussianFlow(torch.nn.Module):
    """The exact velocity for data of mean 0.5, deviation 0.3: noise z must end at 0.5 + 0.3 z."""

    def forward(self, hidden_states, timestep):
        sigma = timestep.view(-1, 1) / 1000
        centred = hidden_states - (1 - sigma) * 0.5
        share = centred / ((1 - sigma) ** 2 * 0.09 + sigma**2)
        return sigma * share - (0.5 + (1 - sigma) * 0.09 * share)


@pytest.mark.parametrize(
    ("solver", "order", "expected"),
    [("same", None, 1), ("dpm_solver_pp", 1, 1), ("adams_bashforth", 2, 2)],
)
def test_error_falls_with_the_order_of_the_solver(solver, order, expected):
    from optimize.capture.from_denoiser import capture

    inputs = {"hidden_states": torch.randn(2, 5).double(), "timestep": torch.rand(2).double()}
    program = capture(GaussianFlow().eval(), inputs)
    noise = torch.linspace(-2, 2, 10, dtype=torch.float64).view(2, 5)

    def error(steps: int) -> float:
        rewritten = FuseSolver(solver, order, steps).rewrite(program).program
        return float((rewritten(latent=noise)["latent"] - (0.5 + 0.3 * noise)).abs().max())

    assert error(80) / error(160) == pytest.approx(2**expected, rel=0.2)


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

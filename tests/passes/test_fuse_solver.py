"""The pass fuse_solver: rewrites, declines, numerics."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from optimize.capture.from_denoiser import capture
from optimize.commands.models import LoadedModel, load_model
from optimize.export.bundle import export_bundle
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.noise_path import Levels
from optimize.ir.schedules import FlowSchedule
from optimize.ir.spec import check_program
from optimize.passes.fuse_solver import ADAPTIVE, FuseSolver, SolverName
from optimize.passes.pass_base import Declined
from optimize.passes.solvers.catalog import SOLVERS
from optimize.passes.solvers.consistency import better_reading
from optimize.runtime import philox
from optimize.runtime.loop import calls
from optimize.runtime.session import load

START = torch.linspace(-2, 2, 10, dtype=torch.float64).view(2, 5)


@pytest.fixture(scope="module")
def digits() -> LoadedModel:
    return load_model("zoo:digits-dit")


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
    inputs = {"hidden_states": torch.randn(2, 5).double(), "timestep": torch.rand(2).double()}
    program = capture(GaussianFlow().eval(), inputs)
    noise = START

    def error(steps: int) -> float:
        rewritten = FuseSolver(solver, order, steps).rewrite(program).program
        return float((rewritten(latent=noise)["latent"] - (0.5 + 0.3 * noise)).abs().max())

    assert error(80) / error(160) == pytest.approx(2**expected, rel=0.2)


def test_declines_a_fused_program_and_euler_on_epsilon(captured):
    _, flow = captured("sd3", torch.float32)
    fused = FuseSolver().rewrite(flow).program
    assert FuseSolver().declines(fused) == "the solver is already fused"
    _, epsilon = captured("dit", torch.float32)
    assert "expected 'flow'" in (FuseSolver("euler").declines(epsilon) or "")


def test_declines_steps_that_need_bodies_nobody_made(captured):
    from optimize.passes.cache_regions import CacheRegions

    _, program = captured("sd3", torch.float32)
    stepped = CacheRegions(keep_ratio=((0, 0.5), (10, 0.25)), warmup=2).rewrite(program).program
    with pytest.raises(Declined, match="capture with steps=16"):
        FuseSolver(steps=16).rewrite(stepped)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"solver": "rk45"}, "found 'rk45', expected one of same, euler"),
        ({"solver": "euler", "order": 2}, "found 2"),
        ({"solver": "dpm_solver_pp", "order": 4}, r"found 4, expected a whole number in \[1, 3\]"),
        ({"steps": 0}, "found 0"),
        ({"steps": 10**9}, "found 1000000000"),
        ({"solver": "ddim", "eta": -0.1}, "found -0.1"),
        ({"solver": "ddim", "eta": float("nan")}, "found nan"),
        ({"solver": "ddim", "thresholding": 1.5}, "found 1.5"),
        ({"solver": "ddim", "dualfast": -1.0}, "found -1.0"),
        ({"eta": 1.0}, "found 'same' with eta"),
        ({"schedule": "cosine"}, "found 'cosine', expected one of same, time"),
        ({"shift": 3.0}, "expected it with schedule 'time'"),
        ({"solver": "dpm_solver_adaptive", "steps": 10}, "expected order 2 or 3 and no steps"),
    ],
)
def test_refuses_options_out_of_range(options, found):
    with pytest.raises((ValueError, TypeError), match=found):
        FuseSolver(**options)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"solver": "dpm_solver_pp", "order": 3, "steps": 2}, "found 2 steps for order 3"),
        ({"solver": "dpm_solver"}, "pure noise"),
        ({"solver": "unipc", "eta": 1.0}, "unipc: found eta 1.0, expected none; ddim, dpm_solver"),
        ({"solver": "euler", "thresholding": 0.995}, "found threshold"),
        ({"schedule": "log_snr", "shift": 2.0}, "schedule 'time' of a flow model only"),
    ],
)
def test_declines_what_does_not_go_together(captured, options, found):
    _, flow = captured("sd3", torch.float32)
    assert found in (FuseSolver(**options).declines(flow) or "")


class Listed:
    """A schedule that is a plain list of noise levels."""

    path = FlowSchedule().path

    def __init__(self, *sigma: float) -> None:
        self.sigma = np.array(sigma)

    def levels(self, steps: int) -> Levels:
        return Levels(1 - self.sigma, self.sigma, 1000 * self.sigma[:-1])


@pytest.mark.parametrize(
    ("sigma", "found"),
    [
        ((1.0, 0.5, 0.5, 0.0), "found equal noise levels sigma 0.5, 0.5 at step 1"),
        ((0.5, 0.8, 0.0), "found rising noise levels sigma 0.5, 0.8 at step 0"),
        ((1.0, float("nan"), 0.0), "found alpha"),
        ((1.0, float("inf"), 0.0), "expected finite numbers"),
        ((1.0,), "at least one timestep"),
    ],
)
def test_declines_schedules_no_solver_can_follow(captured, sigma, found):
    _, program = captured("sd3", torch.float32)
    description = replace(program.description, schedule=Listed(*sigma), steps=len(sigma) - 1 or 1)
    broken = replace(program, description=description)
    assert found in (FuseSolver("dpm_solver_pp").declines(broken) or "")


def gaussian_program(**loop):
    inputs = {"hidden_states": torch.randn(2, 5).double(), "timestep": torch.rand(2).double()}
    return capture(GaussianFlow().eval(), inputs, loop=DenoiseLoop(**loop))


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver_pp", "dpm_solver_pp_ancestral"])
def test_fresh_noise_comes_from_the_seed_and_gives_the_right_law(solver):
    """With noise the end is random: its mean and deviation are those of the data."""
    fused = FuseSolver(solver, eta=1.0, steps=80).rewrite(gaussian_program()).program
    check_program(fused)
    assert "step_noise" in {noise.name for noise in fused.loop.noise}
    noise = torch.from_numpy(philox.batch(3, "latent", 0, (2000, 5)))
    first = fused(latent=noise, seed=1)["latent"]
    assert torch.equal(first, fused(latent=noise, seed=1)["latent"])
    assert not torch.equal(first, fused(latent=noise, seed=2)["latent"])
    assert float(first.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(first.std()) == pytest.approx(0.3, abs=0.02)
    correlation = np.corrcoef(first.flatten(), noise.flatten())[0, 1]
    assert abs(correlation) < 0.1  # the deterministic solvers keep it at 1


@pytest.mark.parametrize("options", [{}, {"thresholding": 0.995}, {"eta": 0.5}])
@pytest.mark.parametrize("schedule", ["same", "log_snr", "karras", "beta", "quadratic"])
def test_a_bundle_gives_the_program_s_numbers(options, schedule, tmp_path):
    fuse = FuseSolver("dpm_solver_pp", 2, 7, schedule=schedule, **options)
    fused = fuse.rewrite(gaussian_program()).program
    check_program(fused)
    expected = fused(latent=START, seed=5)["latent"]
    session = load(export_bundle(fused, tmp_path / "bundle"))
    made = session(latent=START.numpy(), seed=5)["latent"]
    np.testing.assert_allclose(made, expected.numpy(), atol=1e-12)


def test_thresholding_clips_the_estimate_itself(captured):
    """The data's mean lies outside [-1, 1]: thresholded samples stay inside, plain ones do not."""
    program = gaussian_program()
    plain = FuseSolver("dpm_solver_pp", steps=10).rewrite(program).program
    clipped = FuseSolver("dpm_solver_pp", steps=10, thresholding=1.0).rewrite(program).program
    start = 6 * START
    assert float(plain(latent=start)["latent"].abs().max()) > 1.5
    assert float(clipped(latent=start)["latent"].abs().max()) <= 1 + 1e-12


def test_thresholding_of_latents_warns(captured):
    _, program = captured("sd3", torch.float32)
    with pytest.warns(UserWarning, match="pixels in"):
        FuseSolver("dpm_solver_pp", thresholding=0.995).rewrite(program)


def test_guidance_is_mixed_by_the_kernel(captured):
    """The fused graph reads both halves of what the network returned, unconverted."""
    made, program = captured("sd3", torch.bfloat16)
    fused = FuseSolver("dpm_solver_pp").rewrite(program).program
    (step,) = [
        node
        for node in fused.graphs["step"].graph.nodes
        if node.target is torch.ops.optimize.solver_step.default
    ]
    assert step.args[1].meta["val"].dtype == torch.bfloat16
    assert fused.graphs["step"].node("latent").meta["val"].dtype == torch.float32
    if program.description.guided:
        assert step.args[6].name == "guidance_scale"
    expected = FuseSolver("same").rewrite(program).program(seed=1, **made.request())["latent"]
    assert torch.equal(program(seed=1, **made.request())["latent"], expected)


def test_a_wrong_prediction_type_is_noticed(digits):
    """The digits DiT predicts the flow; described as anything else, its outputs say so."""
    inputs, request = digits.example_inputs, {"class_labels": np.arange(2)}
    for described in ("flow", "epsilon", "v", "denoised"):
        loop = DenoiseLoop(steps=4, prediction=described, schedule=FlowSchedule(start=0.98))
        program = capture(digits.model, inputs, loop=loop)
        assert better_reading(program, request) == (None if described == "flow" else "flow")


def test_an_untrained_network_says_nothing_of_its_type(family, captured):
    made, program = captured(family, torch.float32)
    assert better_reading(program, made.request()) is None


def test_every_solver_of_the_catalogue_can_be_asked_for():
    assert set(get_args(SolverName)) == {"same", ADAPTIVE, *SOLVERS}

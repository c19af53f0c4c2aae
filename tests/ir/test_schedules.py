"""Noise levels: the lists of diffusers, ends without infinities, paths that invert."""

from typing import Any

import diffusers
import numpy as np
import pytest

from optimize.capture.scheduler import schedule_of
from optimize.ir.errors import InputModelError
from optimize.ir.mean_reverting import MeanRevertingSchedule
from optimize.ir.noise_path import Levels
from optimize.ir.schedules import FlowSchedule, Respaced, VarianceSchedule, check_levels

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPACINGS = ("time", "log_snr", "quadratic", "karras", "exponential", "lu", "beta")
BASES = {
    "flow": FlowSchedule(),
    "variance": VarianceSchedule(),
    "mean reverting": MeanRevertingSchedule(),
    "diffusers": schedule_of(diffusers.DPMSolverMultistepScheduler(**BETAS)),
    "diffusers flow": schedule_of(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)),
}


@pytest.mark.parametrize("steps", [1, 2, 8, 25])
@pytest.mark.parametrize(
    ("spacing", "option"),
    [
        ("karras", "use_karras_sigmas"),
        ("exponential", "use_exponential_sigmas"),
        ("lu", "use_lu_lambdas"),
        ("beta", "use_beta_sigmas"),
    ],
)
def test_spacings_are_those_of_diffusers(spacing: Any, option: str, steps: int) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, **{option: True})
    scheduler.set_timesteps(steps)
    levels = Respaced(VarianceSchedule(), spacing).levels(steps)
    ratio = scheduler.sigmas.double().numpy()
    # Theirs come from alphas cumulated in float32.
    np.testing.assert_allclose(levels.sigma / levels.alpha, ratio, rtol=3e-5)
    # Theirs are whole timesteps: rounded, or with some options cut off.
    np.testing.assert_allclose(levels.timestep, scheduler.timesteps.numpy(), atol=1.0)


@pytest.mark.parametrize("picked", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_picked_timesteps_are_those_of_diffusers(picked: Any, steps: int) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, timestep_spacing=picked)
    scheduler.set_timesteps(steps)
    levels = VarianceSchedule(spacing=picked).levels(steps)
    assert levels.timestep.tolist() == scheduler.timesteps.tolist()
    ratio = scheduler.sigmas.double().numpy()
    np.testing.assert_allclose(levels.sigma / levels.alpha, ratio, rtol=3e-5)


@pytest.mark.parametrize("tokens", [64, 256, 1024, 4096])
def test_dynamic_shift_is_that_of_flux(tokens: int) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    sigmas = np.linspace(1.0, 0.1, 10)
    scheduler.set_timesteps(sigmas=sigmas, mu=calculate_shift(tokens))
    levels = FlowSchedule.for_tokens(tokens).levels(10)
    np.testing.assert_allclose(levels.sigma, scheduler.sigmas.numpy(), atol=1e-6)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("final", ["zero", "lowest"])
def test_every_spacing_of_every_path_can_be_followed(base: str, spacing: Any, final: Any) -> None:
    schedule = Respaced(BASES[base], spacing, final=final)
    for steps in (1, 2, 3, 10, 50):
        levels = schedule.levels(steps)
        check_levels(levels)
        assert levels.steps == steps
        assert (levels.sigma[-1] == 0) == (final == "zero")
        half = levels.half_log_snr
        assert np.all(np.isfinite(half[:-1])) and np.all(np.diff(half) > 0)
        high = schedule.path.split(np.array([schedule.path.ends[1]]))
        np.testing.assert_allclose([levels.alpha[0], levels.sigma[0]], np.ravel(high), rtol=1e-9)


@pytest.mark.parametrize("base", BASES)
def test_paths_invert(base: str) -> None:
    path = BASES[base].path
    low, high = path.ends
    level = np.exp(np.linspace(np.log(low), np.log(high), 40))
    np.testing.assert_allclose(path.level(path.time(level)), level, rtol=1e-6)
    alpha, sigma = path.split(level[:-1])
    np.testing.assert_allclose(path.level_at(np.log(alpha) - np.log(sigma)), level[:-1], rtol=1e-9)


@pytest.mark.parametrize("base", BASES)
def test_a_schedule_s_own_levels_lie_on_its_path(base: str) -> None:
    levels = BASES[base].levels(6)
    path = levels.path
    assert path is not None
    inner = slice(1, -1)
    level = path.level_at(np.log(levels.alpha[inner]) - np.log(levels.sigma[inner]))
    alpha, sigma = path.split(level)
    np.testing.assert_allclose(alpha, levels.alpha[inner], rtol=1e-6)
    np.testing.assert_allclose(sigma, levels.sigma[inner], rtol=1e-6)


def test_log_snr_spacing_is_even_and_quadratic_is_even_in_the_root() -> None:
    levels = Respaced(VarianceSchedule(), "log_snr", final="lowest").levels(9)
    np.testing.assert_allclose(np.diff(levels.half_log_snr), np.diff(levels.half_log_snr)[0])
    levels = Respaced(VarianceSchedule(), "quadratic").levels(9)
    np.testing.assert_allclose(np.diff(np.sqrt(levels.timestep), 2), 0, atol=1e-9)


def test_shift_moves_levels_towards_noise() -> None:
    plain = Respaced(FlowSchedule(), "time").levels(10)
    moved = Respaced(FlowSchedule(), "time", shift=3.0).levels(10)
    np.testing.assert_allclose(plain.sigma, FlowSchedule().levels(10).sigma, atol=1e-12)
    np.testing.assert_allclose(moved.sigma, FlowSchedule(shift=3.0).levels(10).sigma, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"spacing": "cosine"}, "found 'cosine', expected one of time, log_snr"),
        ({"spacing": "karras", "shift": 2.0}, "schedule 'time' of a flow model only"),
        ({"spacing": "karras", "lowest": 2.0}, "expected a level between 0 and 1"),
    ],
)
def test_refuses_options_that_cannot_be(options: dict[str, Any], found: str) -> None:
    with pytest.raises(InputModelError, match=found):
        Respaced(FlowSchedule(), **options)


def test_levels_of_no_step_are_refused() -> None:
    with pytest.raises(InputModelError, match="at least one timestep"):
        check_levels(Levels(np.ones(1), np.zeros(1), np.zeros(0)))

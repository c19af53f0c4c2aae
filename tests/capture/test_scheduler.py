"""The levels and steps read off schedulers are those their pipelines use."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from optimize.capture.scheduler import DiffusersSchedule, schedule_of
from optimize.ir.denoise import Prediction
from optimize.ir.errors import InputModelError
from optimize.ir.solver_step import SolverStep, constant_error

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS: list[tuple[str, dict[str, Any], Prediction]] = [
    ("DDIMScheduler", {"clip_sample": False}, "epsilon"),
    (
        "DDIMScheduler",
        {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
        "epsilon",
    ),
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}, "v"),
    ("DPMSolverMultistepScheduler", {}, "epsilon"),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}, "epsilon"),
    (
        "DPMSolverMultistepScheduler",
        {"solver_type": "heun", "prediction_type": "sample"},
        "denoised",
    ),
    ("DPMSolverMultistepScheduler", {"euler_at_final": True, **FLOW}, "flow"),
    ("UniPCMultistepScheduler", {}, "epsilon"),
    ("UniPCMultistepScheduler", {"solver_order": 3, "prediction_type": "v_prediction"}, "v"),
    ("UniPCMultistepScheduler", {"solver_order": 1, **FLOW}, "flow"),
    ("UniPCMultistepScheduler", {"disable_corrector": [0, 1], **FLOW}, "flow"),
    (
        "CogVideoXDDIMScheduler",
        {
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "rescale_betas_zero_snr": True,
        },
        "v",
    ),
]


def made(name: str, options: dict[str, Any]) -> Any:
    return getattr(diffusers, name)(**options)


@pytest.mark.parametrize("steps", [2, 5, 20])
@pytest.mark.parametrize(("name", "options", "prediction"), SCHEDULERS)
def test_solver_moves_as_the_scheduler(
    name: str, options: dict[str, Any], prediction: Prediction, steps: int
) -> None:
    scheduler = made(name, options)
    schedule = schedule_of(scheduler)
    assert schedule.prediction == prediction
    step = schedule.solver(steps)
    assert isinstance(step, SolverStep)
    scheduler.set_timesteps(steps)
    torch.manual_seed(0)
    theirs = torch.randn(2, 3, dtype=torch.float64)
    ours, kept = theirs.numpy(), [np.zeros((2, 3))] * step.history
    for index, timestep in enumerate(scheduler.timesteps):
        # A nonlinear "network", so that histories matter.
        output = torch.sin(3 * theirs) + 0.1 * index
        theirs = scheduler.step(output, timestep, theirs, return_dict=False)[0].double()
        values = [ours, np.sin(3 * ours) + 0.1 * index, *kept]
        matrix = step.matrices[index]
        ours, *kept = [
            sum(number * value for number, value in zip(line, values, strict=True))
            for line in matrix
        ]
    assert np.abs(ours - theirs.numpy()).max() <= 2e-5 * np.abs(theirs.numpy()).max()


@pytest.mark.parametrize(("name", "options", "prediction"), SCHEDULERS)
def test_levels_are_what_a_right_network_stays_on(
    name: str, options: dict[str, Any], prediction: Prediction
) -> None:
    schedule = schedule_of(made(name, options))
    for steps in (4, 20):
        levels, step = schedule.levels(steps), schedule.solver(steps)
        assert step is not None and levels.steps == steps == len(levels.sigma) - 1
        if prediction == "flow":
            np.testing.assert_allclose(levels.alpha + levels.sigma, 1.0, atol=1e-7)
        else:
            np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1.0, atol=1e-6)
        scale = max(1.0, float(np.abs(step.matrices).max()))
        assert constant_error(step, prediction) <= 1e-5 * scale


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DDPMScheduler"])
def test_levels_without_a_solver_of_their_own(name: str) -> None:
    scheduler = made(name, {} if "Euler" in name else {"clip_sample": False})
    schedule = schedule_of(scheduler)
    assert schedule.solver(10) is None
    scheduler.set_timesteps(10)
    levels = schedule.levels(10)
    np.testing.assert_allclose(levels.timestep, scheduler.timesteps.numpy())
    kept = np.interp(levels.timestep, np.arange(1000), scheduler.alphas_cumprod.numpy())
    np.testing.assert_allclose(levels.alpha[:-1] ** 2, kept, rtol=0.02)
    assert levels.sigma[-1] == 0 and schedule.random == (name == "DDPMScheduler")


def shift(tokens: int, scheduler: Any, largest: float) -> float:
    config = scheduler.config
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    few, many = config.base_image_seq_len, config.max_image_seq_len
    return float(calculate_shift(tokens, few, many, config.base_shift, largest))


@pytest.mark.parametrize("steps", [1, 4, 28])
@pytest.mark.parametrize("sigmas", ["scheduler", "uniform"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_flow_levels_are_the_pipelines(steps: int, sigmas: Any, dynamic: bool) -> None:
    from diffusers.pipelines.flux.pipeline_flux import retrieve_timesteps

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    given: dict[str, Any] = {}
    if sigmas == "uniform":
        given["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    mu = None
    if dynamic:
        mu = given["mu"] = shift(1024, scheduler, 1.15)
    timesteps, _ = retrieve_timesteps(scheduler, steps, "cpu", **given)
    levels = schedule_of(scheduler, sigmas=sigmas, mu=mu).levels(steps)
    np.testing.assert_array_equal(levels.timestep, timesteps.numpy())
    np.testing.assert_array_equal(levels.sigma, scheduler.sigmas.numpy())
    np.testing.assert_allclose(levels.alpha, 1 - levels.sigma)


def test_hunyuans_sigmas_are_the_uniform_ones() -> None:
    for steps in (1, 7, 50):
        theirs = np.linspace(1.0, 0.0, steps + 1)[:-1]
        np.testing.assert_allclose(np.linspace(1.0, 1 / steps, steps), theirs, atol=1e-15)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (diffusers.LMSDiscreteScheduler(), "LMSDiscreteScheduler, expected one of Flow"),
        (diffusers.DDIMScheduler(), "clip_sample=True, expected False"),
        (diffusers.DPMSolverMultistepScheduler(thresholding=True), "thresholding=True"),
    ],
)
def test_schedulers_that_are_refused(scheduler: Any, expected: str) -> None:
    with pytest.raises(InputModelError, match=expected):
        schedule_of(scheduler)


def test_steps_that_are_not_finite_are_refused() -> None:
    schedule = schedule_of(diffusers.UniPCMultistepScheduler(solver_type="bh1", **FLOW))
    with pytest.raises(InputModelError, match="not finite in 2 steps"):
        schedule.solver(2)


def test_only_listed_classes_are_made() -> None:
    with pytest.raises(InputModelError, match="found DiffusionPipeline"):
        DiffusersSchedule("DiffusionPipeline", {})

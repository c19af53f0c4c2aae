"""The coefficient tables: order of convergence, exactness, agreement with diffusers."""

import numpy as np
import pytest
import torch

from optimize.ir.noise_path import Levels
from optimize.ir.schedules import FlowSchedule, VarianceSchedule
from optimize.ir.solver_step import DataStep, EulerStep, constant_error
from optimize.passes.solvers.ddim import ddim
from optimize.passes.solvers.dpm_solver_pp import dpm_solver_pp
from optimize.passes.solvers.euler import euler

LOW, HIGH = -4.0, 4.0
START = torch.tensor(0.7, dtype=torch.float64)


def uniform_log_snr(steps: int) -> Levels:
    """Variance-preserving levels, uniform in half log-SNR."""
    half = np.linspace(LOW, HIGH, steps + 1)
    alpha = 1 / np.sqrt(1 + np.exp(-2 * half))
    sigma = np.exp(-half) * alpha
    return Levels(alpha, sigma, half[:-1])


def mixture_denoised(latent: float, alpha: float, sigma: float) -> float:
    """The exact clean estimate for two Gaussians at -1 and 1.5 of deviation 0.4."""
    means, weights, variance = np.array([-1.0, 1.5]), np.array([0.4, 0.6]), 0.16
    total = alpha**2 * variance + sigma**2
    logits = np.log(weights) - (latent - alpha * means) ** 2 / (2 * total)
    share = np.exp(logits - logits.max())
    share /= share.sum()
    return float(share @ (means + alpha * variance / total * (latent - alpha * means)))


def run(step, levels, latent, predict):
    """Runs a table outside any graph; works on numbers and on tensors."""
    table = torch.tensor(step.table, dtype=getattr(latent, "dtype", torch.float64))
    history: list = []
    for i, row in enumerate(table):
        prediction = predict(latent, levels, i)
        if isinstance(step, EulerStep):
            latent = latent + row[0] * prediction
            continue
        moved = row[0] * latent + row[1] * prediction
        for number, old in zip(row[2 : 2 + step.history], history, strict=False):
            moved = moved + number * old
        if step.history:
            history = [row[-2] * latent + row[-1] * prediction, *history][: step.history]
        latent = moved
    return latent


def mixture(latent, levels, i):
    return mixture_denoised(float(latent), levels.alpha[i], levels.sigma[i])


def measured_order(order: int, **options: float) -> float:
    def error(steps: int) -> float:
        levels = uniform_log_snr(steps)
        step = dpm_solver_pp(levels, "denoised", order, lower_order_final=False, **options)
        return abs(float(run(step, levels, START, mixture)) - exact)

    fine = uniform_log_snr(8_000)
    reference = dpm_solver_pp(fine, "denoised", 2, lower_order_final=False)
    exact = float(run(reference, fine, START, mixture))
    return float(np.log2(error(160) / error(320)))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_reaches_the_order_it_claims(order):
    assert measured_order(order) == pytest.approx(order, abs=0.15)


def test_published_third_order_constant_is_second_order():
    """Negative control: the published factor 1 in place of 2."""
    assert measured_order(3, third_order_factor=1.0) < 2.3


@pytest.mark.parametrize("factor", [2.0, 1.0], ids=["corrected", "published"])
def test_third_order_rows_are_exact_on_quadratics(factor):
    """For a clean estimate quadratic in half log-SNR the step integral is known exactly."""
    half = np.array([-2.0, -1.3, -0.9, 0.4])
    alpha = 1 / np.sqrt(1 + np.exp(-2 * half))
    sigma = np.exp(-half) * alpha
    levels = Levels(alpha, sigma, half[:-1])
    step = dpm_solver_pp(levels, "denoised", 3, lower_order_final=False, third_order_factor=factor)
    row = step.table[2]

    def estimate(x):
        return 0.3 + 0.7 * x - 1.1 * x**2

    # Integral of exp(-(end - u)) m(u) over the last step, by Gauss-Legendre.
    nodes, weights = np.polynomial.legendre.leggauss(40)
    middle, width = (half[2] + half[3]) / 2, (half[3] - half[2]) / 2
    points = middle + width * nodes
    integral = float(weights @ (np.exp(-(half[3] - points)) * estimate(points))) * width
    # Columns a, b, c1, c2, d, e; a "denoised" prediction is the estimate itself.
    found = float(row[1:4] @ estimate(half[[2, 1, 0]]))
    error = abs(found - alpha[3] * integral)
    assert error < 1e-12 if factor == 2.0 else error > 1e-3


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v", "denoised"])
def test_constant_estimates_are_exact(order, prediction):
    schedule = FlowSchedule(shift=3.0) if prediction == "flow" else VarianceSchedule()
    for steps in (1, 2, 5, 20):
        levels = schedule.levels(steps)
        step = dpm_solver_pp(levels, prediction, order)
        assert np.isfinite(step.table).all()
        assert constant_error(levels, prediction, step) < 1e-12
    wrong = DataStep(step.name, step.table * 1.01, step.history)
    assert constant_error(levels, prediction, wrong) > 1e-3


def test_first_order_is_ddim():
    levels = VarianceSchedule().levels(12)
    first = dpm_solver_pp(levels, "epsilon", 1).table
    assert np.allclose(first, ddim(levels, "epsilon").table, rtol=0, atol=1e-14)


def test_first_order_on_flow_levels_is_euler():
    levels = FlowSchedule(shift=3.0).levels(10)
    table, plain = ddim(levels, "flow").table, euler(levels, "flow").table
    assert np.allclose(table, np.stack([np.ones(10), plain[:, 0]], axis=1), rtol=0, atol=1e-12)


def noise_of(latent: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """The noise a network that estimates the clean value as tanh would find."""
    return (latent - alpha * torch.tanh(latent)) / sigma


def relative(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).norm() / second.norm())


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_agrees_with_diffusers(spacing, steps, order):
    """Order 3 with the published constant; the corrected one is tested for its order above."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", solver_order=order,
        timestep_spacing=spacing,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = start
    levels = VarianceSchedule(spacing=spacing).levels(steps)
    assert levels.timestep.tolist() == scheduler.timesteps.tolist()
    # Theirs are cumulated in float32. The solvers are compared on one list of levels.
    ratio = scheduler.sigmas.double().numpy()
    assert np.allclose(levels.sigma / levels.alpha, ratio, rtol=2e-5, atol=0)
    alpha = 1 / np.sqrt(1 + ratio**2)
    levels = Levels(alpha, ratio * alpha, levels.timestep)
    for timestep, alpha, sigma in zip(
        scheduler.timesteps, levels.alpha[:-1], levels.sigma[:-1], strict=True
    ):
        prediction = noise_of(theirs, alpha, sigma)
        theirs = scheduler.step(prediction, timestep, theirs).prev_sample
    step = dpm_solver_pp(levels, "epsilon", order, third_order_factor=1.0)
    ours = run(step, levels, start, lambda x, at, i: noise_of(x, at.alpha[i], at.sigma[i]))
    assert relative(ours, theirs) <= 5e-7


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_euler_levels_agree_with_diffusers(steps):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps))
    levels = FlowSchedule(shift=3.0).levels(steps)
    assert np.allclose(levels.sigma, scheduler.sigmas.numpy(), atol=1e-6)
    assert np.allclose(levels.timestep, scheduler.timesteps.numpy(), atol=1e-3)


def test_refuses_levels_that_do_not_decrease():
    levels = Levels(np.array([0.5, 0.5, 1.0]), np.array([0.5, 0.5, 0.0]), np.array([1.0, 0.5]))
    with pytest.raises(ValueError, match="do not decrease"):
        dpm_solver_pp(levels, "flow", 2)


def test_refuses_an_order_that_does_not_exist():
    with pytest.raises(ValueError, match="expected 1, 2 or 3"):
        dpm_solver_pp(FlowSchedule().levels(4), "flow", 4)


def test_euler_refuses_other_predictions():
    with pytest.raises(ValueError, match="use solver 'ddim'"):
        euler(VarianceSchedule().levels(4), "epsilon")

"""The MR Sampler on data whose solution is known, and against its published coefficients."""

import numpy as np
import pytest

from optimize.ir.noise_path import Array, Levels
from optimize.ir.solver_step import SolverStep, walk
from optimize.passes.solvers.catalog import solve
from optimize.passes.solvers.exponential import multistep
from optimize.passes.solvers.mr_sampler import mr_sampler
from optimize.passes.solvers.solver_base import Sampling

STATIONARY = 0.2
MEAN, CLEAN, DEVIATION = 0.4, 0.7, 0.15
STARTS = np.random.default_rng(0).standard_normal(200) * STATIONARY


def levels(steps: int) -> Levels:
    """alpha = exp(-5.3 t^2), t from 1 to 0.03, uniform in half log-SNR."""

    def half_of(time: float) -> float:
        alpha = np.exp(-5.3 * time**2)
        return float(np.log(alpha) - np.log(STATIONARY * np.sqrt(1 - alpha**2)))

    half = np.linspace(half_of(1.0), half_of(0.03), steps + 1)
    alpha = 1 / np.sqrt(1 + np.exp(-2 * half) / STATIONARY**2)
    sigma = np.exp(-half) * alpha
    return Levels(alpha, sigma, half[:-1], prior=STATIONARY)


def clean_estimate(at: Levels):
    """Exact for normal data; in y = x - MEAN the data's mean is CLEAN - MEAN."""

    def network(latent: Array, call: int) -> Array:
        alpha, sigma = at.alpha[call], at.sigma[call]
        variance = alpha**2 * DEVIATION**2 + sigma**2
        centred = latent - alpha * (CLEAN - MEAN)
        return CLEAN - MEAN + alpha * DEVIATION**2 / variance * centred

    return network


def exact(at: Levels, start: Array) -> Array:
    variance = at.alpha**2 * DEVIATION**2 + at.sigma**2
    path = at.alpha * (CLEAN - MEAN)
    return path[-1] + np.sqrt(variance[-1] / variance[0]) * (start - path[0])


def error(make, steps: int) -> float:
    step: SolverStep = make(steps)
    found = walk(step, clean_estimate(step.levels), STARTS)[-1]
    return float(np.sqrt(np.mean((found - exact(step.levels, STARTS)) ** 2)))


def order(make) -> float:
    return float(np.log2(error(make, 80) / error(make, 160)))


def in_form(form: str, order: int, factor: float = 2.0):
    def make(steps: int) -> SolverStep:
        run = Sampling(levels, steps, "denoised", order, "taylor")
        return multistep("m", run, form, last_steps="full", third_order_factor=factor)

    return make


@pytest.mark.parametrize(
    ("form", "claimed", "seen"),
    [("data", 1, 0.99), ("data", 2, 2.01), ("noise", 1, 0.99), ("noise", 2, 1.99)],
)
def test_orders_on_normal_data(form, claimed, seen):
    assert order(in_form(form, claimed)) == pytest.approx(seen, abs=0.05)


def test_third_order_needs_the_factor_two():
    assert order(in_form("data", 3)) == pytest.approx(3.33, abs=0.1)
    assert order(in_form("data", 3, factor=1.0)) == pytest.approx(2.07, abs=0.1)


@pytest.mark.parametrize("steps", [10, 40, 160])
def test_first_order_is_the_same_in_both_forms(steps):
    assert error(in_form("data", 1), steps) == pytest.approx(
        error(in_form("noise", 1), steps), rel=1e-9
    )


def test_stochastic_first_order_has_the_exact_mean_and_too_little_variance():
    """The variance rises to the exact one as steps are added."""
    start = STARTS[:1] * np.ones(20_000)
    rng = np.random.default_rng(1)
    variances = []
    for steps in (5, 20, 80):
        step = solve("mr_sampler", Sampling(levels, steps, "denoised", 1, eta=1.0))
        at = step.levels
        silent = [np.zeros(1)] * steps
        mean = walk(step, clean_estimate(at), STARTS[:1], silent)[-1]
        variance = at.alpha[0] ** 2 * DEVIATION**2 + at.sigma[0] ** 2
        centred = STARTS[:1] - at.alpha[0] * (CLEAN - MEAN)
        posterior = CLEAN - MEAN + at.alpha[0] * DEVIATION**2 / variance * centred
        share = at.sigma[-1] ** 2 * at.alpha[0] / (at.sigma[0] ** 2 * at.alpha[-1])
        expected = at.alpha[-1] * posterior + share * (STARTS[:1] - at.alpha[0] * posterior)
        assert np.abs(mean - expected).max() < 1e-14
        noise = [rng.standard_normal(len(start)) for _ in range(steps)]
        variances.append(walk(step, clean_estimate(at), start, noise)[-1].var())
    at = levels(5)
    true = at.alpha[-1] ** 2 * DEVIATION**2 + at.sigma[-1] ** 2
    assert true == pytest.approx(0.022666, abs=1e-6)
    assert variances == pytest.approx([0.00703, 0.01595, 0.02067], rel=0.05)


def published_mean(name: str, at: Levels, call: int) -> float:
    """The printed coefficient of the mean where the latent is not shifted."""
    alpha, sigma = at.alpha, at.sigma
    ratio = alpha[call + 1] / alpha[call]
    h = at.half_log_snr[call + 1] - at.half_log_snr[call]
    rho = sigma[call + 1] / sigma[call]
    return {
        "data": 1 - rho + rho * alpha[call] - alpha[call + 1],
        "stochastic": 1 - ratio * np.exp(-2 * h) + alpha[call + 1] * np.expm1(-2 * h),
        "noise": 1 - ratio,
    }[name]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", ["data", "stochastic", "noise"])
def test_the_shift_gives_the_published_coefficients_of_the_mean(name, order):
    """Unshifted, the mean enters by 1 - a - sum(b), in the noise form by 1 - a."""
    eta = 1.0 if name == "stochastic" else 0.0
    prediction = "epsilon" if name == "noise" else "denoised"
    run = Sampling(levels, 8, prediction, order, "taylor", eta=eta)
    step = multistep("m", run, "noise" if name == "noise" else "data", last_steps="full")
    kept = np.zeros(step.history)
    for call, matrix in enumerate(step.matrices):
        # Where latent and clean estimate are 1 (or the noise 0), the mean makes up the rest.
        values = np.array([1.0, 0.0 if name == "noise" else 1.0, *kept])
        latent, *kept = matrix[:, : 2 + step.history] @ values
        found = 1 - latent
        assert found == pytest.approx(published_mean(name, step.levels, call), abs=1e-12)


def test_a_clean_image_equal_to_the_mean_is_reached():
    """y's clean value is 0: what is left is the noise of the last level."""
    step = mr_sampler(Sampling(levels, 6, "denoised", 2))
    found = walk(step, lambda latent, call: np.zeros_like(latent), STARTS)[-1]
    left = step.levels.sigma[-1] / step.levels.sigma[0]
    assert np.abs(found - left * STARTS).max() < 1e-12


@pytest.mark.parametrize("prediction", ["epsilon", "v", "denoised"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_every_head_gives_the_same_steps(prediction, eta):
    """The same network said in noise, velocity or clean values."""
    step = solve("mr_sampler", Sampling(levels, 8, prediction, 2, eta=eta))
    at, clean = step.levels, clean_estimate(levels(8))

    def network(latent: Array, call: int) -> Array:
        alpha, sigma = at.alpha[call], at.sigma[call]
        value = clean(latent, call)
        noise = (latent - alpha * value) / sigma
        heads = {
            "epsilon": noise,
            "v": alpha * STATIONARY * noise - sigma / STATIONARY * value,
            "denoised": value,
        }
        return heads[prediction]

    plain = solve("mr_sampler", Sampling(levels, 8, "denoised", 2, eta=eta))
    noise = [STARTS] * 8 if eta else None
    expected = walk(plain, clean, STARTS, noise)[-1]
    assert np.abs(walk(step, network, STARTS, noise)[-1] - expected).max() < 1e-11

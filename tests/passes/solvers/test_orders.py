"""Every solver converges at the order it claims; published mistakes do not."""

from collections.abc import Callable

import numpy as np
import pytest

from optimize.ir.noise_path import Array, Levels
from optimize.ir.solver_step import SolverStep, walk
from optimize.passes.solvers.ancestral import dpm_solver_pp_ancestral
from optimize.passes.solvers.exponential import multistep, singlestep
from optimize.passes.solvers.solver_base import Sampling
from optimize.passes.solvers.unipc import unipc
from tests.passes.solvers.toys import MIXTURE, NOISES, exact_solution, uniform_log_snr

EXACT = exact_solution(MIXTURE, NOISES)


def error(make: Callable[[int], SolverStep], steps: int) -> float:
    """Root mean square distance to the exact solution over 64 noises."""
    step = make(steps)
    levels = step.levels

    def network(latent: Array, call: int) -> Array:
        return MIXTURE.epsilon(latent, levels.alpha[call], levels.sigma[call])

    found = walk(step, network, NOISES)[-1]
    return float(np.sqrt(np.mean((found - EXACT) ** 2)))


def measured_order(make: Callable[[int], SolverStep], steps: int = 160) -> float:
    return float(np.log2(error(make, steps) / error(make, 2 * steps)))


def looking_back(
    form: str, order: int, variant: str, factor: float = 2.0
) -> Callable[[int], SolverStep]:
    def make(steps: int) -> SolverStep:
        run = Sampling(uniform_log_snr, steps, "epsilon", order, variant)
        return multistep("m", run, form, last_steps="full", third_order_factor=factor)

    return make


def looking_inside(form: str, order: int, variant: str) -> Callable[[int], SolverStep]:
    def make(steps: int) -> SolverStep:
        run = Sampling(uniform_log_snr, steps * order, "epsilon", order, variant)
        return singlestep("s", run, form, fixed=True)

    return make


@pytest.mark.parametrize("form", ["noise", "data"])
@pytest.mark.parametrize(
    ("order", "variant"), [(1, "midpoint"), (2, "midpoint"), (2, "taylor"), (3, "midpoint")]
)
def test_multistep_reaches_its_order(form, order, variant):
    assert measured_order(looking_back(form, order, variant), 320) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("form", ["noise", "data"])
@pytest.mark.parametrize(
    ("order", "variant"), [(2, "midpoint"), (2, "taylor"), (3, "midpoint"), (3, "taylor")]
)
def test_singlestep_reaches_its_order(form, order, variant):
    assert measured_order(looking_inside(form, order, variant)) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("form", ["noise", "data"])
def test_published_third_order_constant_is_second_order(form):
    assert measured_order(looking_back(form, 3, "midpoint", factor=1.0)) < 2.25


def test_unipc_gains_an_order_by_correcting():
    """The corrector makes the second-order method third order."""

    def make(order: int) -> Callable[[int], SolverStep]:
        return lambda steps: unipc(Sampling(uniform_log_snr, steps, "epsilon", order))

    assert measured_order(make(1)) == pytest.approx(2, abs=0.1)


def test_ancestral_without_noise_is_second_order():
    def make(steps: int) -> SolverStep:
        return dpm_solver_pp_ancestral(Sampling(uniform_log_snr, 2 * steps - 1, "epsilon"))

    # The last step has one call, whose local error is of second order.
    assert measured_order(make) == pytest.approx(2, abs=0.1)


def sine(levels: Levels) -> Callable[[Array, int], Array]:
    """A clean estimate that depends on the level only."""
    return lambda latent, call: np.full_like(latent, np.sin(levels.half_log_snr[call]))


@pytest.mark.parametrize(
    ("order", "factor", "expected"), [(1, 2.0, 1), (2, 2.0, 2), (3, 2.0, 3), (3, 1.0, 2)]
)
def test_stochastic_means_reach_their_order(order, factor, expected):
    """Without the noise drawn, an SDE step is its mean; the published third order is second."""
    eta = 1.0

    def mean_error(steps: int) -> float:
        run = Sampling(uniform_log_snr, steps, "denoised", order, eta=eta)
        step = multistep("m", run, "data", last_steps="full", third_order_factor=factor)
        levels = step.levels
        half = levels.half_log_snr
        silent = [np.zeros(1)] * steps
        found = walk(step, sine(levels), np.ones(1), silent)[-1]
        # Of d latent the homogeneous part falls as sigma exp(-eta half); the rest by quadrature.
        start, end = half[0], half[-1]
        keep = levels.sigma[-1] / levels.sigma[0] * np.exp(-eta * (end - start))
        nodes, weights = np.polynomial.legendre.leggauss(200)
        points = (start + end) / 2 + (end - start) / 2 * nodes
        integrand = (1 + eta) * np.exp(-(1 + eta) * (end - points)) * np.sin(points)
        integral = float(weights @ integrand) * (end - start) / 2
        return abs(float(found[0]) - keep - levels.alpha[-1] * integral)

    assert np.log2(mean_error(320) / mean_error(640)) == pytest.approx(expected, abs=0.1)

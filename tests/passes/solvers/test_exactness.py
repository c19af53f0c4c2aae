"""What a solver must do exactly: constants, polynomials, Gaussian data, and the identities."""

from dataclasses import replace

import numpy as np
import pytest

from optimize.ir.noise_path import Array, Levels
from optimize.ir.schedules import FlowSchedule, Respaced, VarianceSchedule
from optimize.ir.solver_step import SolverStep, Threshold, constant_error, walk
from optimize.passes.solvers.catalog import SOLVERS, solve
from optimize.passes.solvers.exponential import fast_plan, multistep
from optimize.passes.solvers.solver_base import Sampling
from tests.passes.solvers.toys import LinearPath, uniform_log_snr

UNEVEN = np.array([-2.0, -1.3, -0.9, 0.4])


def levels_at(half: Array) -> Levels:
    path = LinearPath()
    level = np.exp(-half)
    alpha, sigma = path.split(level)
    return Levels(alpha, sigma, path.time(level[:-1]), path)


SCHEDULES = {
    "flow": (FlowSchedule(shift=3.0), "flow"),
    "epsilon": (VarianceSchedule(), "epsilon"),
    "v": (VarianceSchedule(), "v"),
    "log_snr": (Respaced(VarianceSchedule(), "log_snr", final="lowest"), "epsilon"),
    "karras": (Respaced(VarianceSchedule(), "karras"), "denoised"),
}


def suits(name: str, case: str) -> bool:
    """Whether a solver takes the model; the noise form cannot start at a flow's pure noise."""
    flow = case == "flow"
    noise_form = name in ("dpm_solver", "dpm_solver_singlestep")
    return not noise_form if flow else not SOLVERS[name].flow_only


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name in sorted(SOLVERS) for case in SCHEDULES if suits(name, case)],
)
def test_a_network_right_about_a_constant_is_followed_exactly(name, case):
    solver, (schedule, prediction) = SOLVERS[name], SCHEDULES[case]
    for calls in (1, 2, 3, 5, 8, 20):
        for order in range(1, min(calls, solver.highest_order) + 1):
            run = Sampling(schedule.levels, calls, prediction, order)
            for options in ({}, {"eta": 0.7}, {"variant": "taylor"}, {"threshold": Threshold()}):
                if set(options) <= solver.options:
                    step = solve(name, replace(run, **options))
                    assert step.calls == calls
                    assert constant_error(step, prediction) < 1e-11
    wrong = replace(step, matrices=step.matrices * 1.01)
    assert constant_error(wrong, prediction) > 1e-3


def integral_of(form: str, eta: float, half: Array, polynomial: np.polynomial.Polynomial) -> float:
    """The exact term of the last step for an estimate that is a polynomial in half log-SNR."""
    start, end = half[-2:]
    nodes, weights = np.polynomial.legendre.leggauss(60)
    points = (start + end) / 2 + (end - start) / 2 * nodes
    rate = 1 + eta if form == "data" else -1
    kernel = (1 + eta) * np.exp(-rate * (end - points))
    return float(weights @ (kernel * polynomial(points))) * (end - start) / 2


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("order", "factor", "exact"), [(2, 2.0, True), (3, 2.0, True), (3, 1.0, False)]
)
def test_rows_are_exact_on_polynomials(form, eta, order, factor, exact):
    """Second-order Taylor rows on lines, third-order rows on parabolas, over uneven steps.

    The published third-order constant fails: the sharpest single check of a third-order row.
    """
    polynomial = np.polynomial.Polynomial([0.3, 0.7, -1.1][:order])
    levels = levels_at(UNEVEN)
    prediction = "denoised" if form == "data" else "epsilon"
    run = Sampling(lambda _: levels, 3, prediction, order, variant="taylor", eta=eta)
    step = multistep("m", run, form, last_steps="full", third_order_factor=factor)
    silent = [np.zeros(1)] * 3 if eta else None
    before, after = walk(
        step, lambda _, call: np.full(1, polynomial(UNEVEN[call])), np.ones(1), silent
    )[1:]
    alpha, sigma = levels.alpha, levels.sigma
    integral = integral_of(form, eta, UNEVEN, polynomial)
    if form == "data":
        keep = sigma[3] / sigma[2] * np.exp(-eta * (UNEVEN[3] - UNEVEN[2]))
        expected = keep * before + alpha[3] * integral
    else:
        expected = alpha[3] / alpha[2] * before - sigma[3] * integral
    error = abs(float((after - expected)[0]))
    assert error < 1e-11 if exact else error > 1e-3


@pytest.mark.parametrize("name", ["dpm_solver", "dpm_solver_singlestep"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_constant_noise_is_exact_in_one_step(name, order):
    """An epsilon that is constant along the path makes every order exact, whatever the step."""
    step = solve(name, Sampling(uniform_log_snr, order, "epsilon", order))
    alpha, sigma = step.levels.alpha, step.levels.sigma
    (found,) = walk(step, lambda latent, call: np.full(1, 0.4), np.array([1.3]))[-1]
    ratio = alpha[-1] / alpha[0]
    expected = ratio * 1.3 + (sigma[-1] - ratio * sigma[0]) * 0.4
    assert found == pytest.approx(expected, abs=1e-12)


def gaussian(levels: Levels, mean: float, deviation: float):
    """The exact epsilon for normal data."""

    def network(latent: Array, call: int) -> Array:
        alpha, sigma = levels.alpha[call], levels.sigma[call]
        return sigma * (latent - alpha * mean) / (alpha**2 * deviation**2 + sigma**2)

    return network


def test_converges_to_the_gaussian_solution():
    """x_t = alpha_t m + sqrt(V_t / V_T) (x_T - alpha_T m), V = alpha^2 s^2 + sigma^2."""
    mean, deviation, start = 0.5, 0.3, np.linspace(-2, 2, 9)
    step = solve("dpm_solver_pp", Sampling(uniform_log_snr, 400, "epsilon", 3))
    alpha, sigma = step.levels.alpha, step.levels.sigma
    variance = alpha**2 * deviation**2 + sigma**2
    found = walk(step, gaussian(step.levels, mean, deviation), start)[-1]
    expected = alpha[-1] * mean + np.sqrt(variance[-1] / variance[0]) * (start - alpha[0] * mean)
    assert np.abs(found - expected).max() < 1e-6


@pytest.mark.parametrize("steps", [3, 10, 50])
def test_first_order_reverse_process_has_the_exact_mean_on_gaussian_data(steps):
    """The clean estimate is a martingale, so no step size makes an error."""
    mean, deviation, start = 0.5, 0.3, np.linspace(-2, 2, 9)
    step = solve("dpm_solver_pp", Sampling(uniform_log_snr, steps, "epsilon", 1, eta=1.0))
    alpha, sigma = step.levels.alpha, step.levels.sigma
    network = gaussian(step.levels, mean, deviation)
    found = walk(step, network, start, [np.zeros(9)] * steps)[-1]
    # E[x_t | x_T] = alpha_t E[x_0 | x_T] + sigma_t^2 alpha_T / (alpha_t sigma_T^2) (x_T - ...).
    posterior = mean + alpha[0] * deviation**2 / (alpha[0] ** 2 * deviation**2 + sigma[0] ** 2) * (
        start - alpha[0] * mean
    )
    share = sigma[-1] ** 2 * alpha[0] / (sigma[0] ** 2 * alpha[-1])
    expected = alpha[-1] * posterior + share * (start - alpha[0] * posterior)
    assert np.abs(found - expected).max() < 1e-14


def same_matrices(first: SolverStep, second: SolverStep, bound: float) -> None:
    assert first.matrices.shape == second.matrices.shape
    assert np.abs(first.matrices - second.matrices).max() <= bound * np.abs(first.matrices).max()


@pytest.mark.parametrize("prediction", ["epsilon", "v", "denoised"])
def test_first_order_is_ddim_in_every_form(prediction):
    schedule = Respaced(VarianceSchedule(), "log_snr", final="lowest")
    run = Sampling(schedule.levels, 12, prediction)
    plain = solve("ddim", run)
    for name in (
        "dpm_solver",
        "dpm_solver_pp",
        "dpm_solver_singlestep",
        "dpm_solver_pp_singlestep",
    ):
        same_matrices(solve(name, run), plain, 1e-13)


def test_first_order_on_flow_levels_is_euler():
    run = Sampling(FlowSchedule(shift=3.0).levels, 10, "flow")
    same_matrices(solve("ddim", run), solve("euler", run), 1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_stochastic_rows_become_the_deterministic_ones(order):
    run = Sampling(uniform_log_snr, 9, "epsilon", order)
    quiet = solve("dpm_solver_pp", replace(run, eta=1e-12))
    columns = quiet.matrices.shape[2] - 1
    plain = solve("dpm_solver_pp", run)
    assert np.abs(quiet.matrices[:, :, :columns] - plain.matrices).max() < 1e-9
    assert np.abs(quiet.matrices[:, 0, -1]).max() < 1e-5


def test_ddim_with_full_eta_is_the_first_order_reverse_process():
    """On the same levels both have the posterior's mean and variance."""
    run = Sampling(uniform_log_snr, 7, "epsilon", eta=1.0)
    same_matrices(solve("ddim", run), solve("dpm_solver_pp", run), 1e-12)


@pytest.mark.parametrize("calls", range(3, 31))
def test_the_fast_plan_spends_exactly_the_calls(calls):
    for order in (1, 2, 3):
        assert sum(fast_plan(calls, order)) == calls


@pytest.mark.parametrize("name", ["ddim", "dpm_solver_pp", "unipc", "dpm_solver_pp_singlestep"])
def test_thresholded_rows_are_the_plain_ones_where_nothing_is_clipped(name):
    """Conversion, then the solver on the clean estimate, is the solver on the prediction."""
    run = Sampling(VarianceSchedule().levels, 8, "epsilon", SOLVERS[name].highest_order)
    plain, thresholded = solve(name, run), solve(name, replace(run, threshold=Threshold()))
    assert thresholded.conversion is not None
    conversion = thresholded.conversion[:, 0]

    def network(latent: Array, call: int) -> Array:
        return np.tanh(latent) * (1 + 0.1 * call)

    def clean(latent: Array, call: int) -> Array:
        return conversion[call, 0] * latent + conversion[call, 1] * network(latent, call)

    start = np.linspace(-1, 1, 5)
    expected = walk(plain, network, start)[-1]
    assert np.abs(walk(thresholded, clean, start)[-1] - expected).max() < 1e-10

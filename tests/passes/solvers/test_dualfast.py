"""DualFast: what it is, what it costs in order, what it gains at few steps."""

from dataclasses import replace

import numpy as np
import pytest

from optimize.ir.noise_path import Array
from optimize.ir.schedules import Respaced, VarianceSchedule
from optimize.ir.solver_step import SolverStep, walk
from optimize.passes.solvers.catalog import SOLVERS, solve
from optimize.passes.solvers.dualfast import DualFast
from optimize.passes.solvers.exponential import multistep
from optimize.passes.solvers.solver_base import Sampling
from tests.passes.solvers.toys import MIXTURE, NOISES, exact_solution, uniform_log_snr

BASES = ["ddim", "dpm_solver", "dpm_solver_pp", "unipc"]
EXACT = exact_solution(MIXTURE, NOISES)


def end(step: SolverStep, start: Array = NOISES) -> Array:
    levels = step.levels

    def network(latent: Array, call: int) -> Array:
        return MIXTURE.epsilon(latent, levels.alpha[call], levels.sigma[call])

    return walk(step, network, start)[-1]


def error(step: SolverStep) -> float:
    return float(np.sqrt(np.mean((end(step) - EXACT) ** 2)))


def base(name: str, steps: int, dualfast: DualFast | None = None) -> SolverStep:
    order = min(2, SOLVERS[name].highest_order)
    return solve(name, Sampling(uniform_log_snr, steps, "epsilon", order, dualfast=dualfast))


@pytest.mark.parametrize("name", BASES)
def test_no_strength_changes_nothing(name):
    plain, mixed = base(name, 8), base(name, 8, DualFast(0.0))
    assert plain.pattern == mixed.pattern
    assert np.array_equal(plain.matrices, mixed.matrices)


@pytest.mark.parametrize("steps", [5, 20, 160])
@pytest.mark.parametrize(
    "schedule",
    [None, Respaced(VarianceSchedule(), "karras", final="lowest")],
    ids=["even", "karras"],
)
def test_on_ddim_with_half_the_step_ratio_it_is_second_order_dpm_solver(steps, schedule):
    """c = 1 / (2 r0) makes DualFast on DDIM the multistep solver itself, so judge it against that."""
    levels = uniform_log_snr if schedule is None else schedule.levels
    half = levels(steps).half_log_snr
    widths = np.diff(half)
    weights = (0.0, *(widths[1:] / (2 * widths[:-1])))
    mixed = solve("ddim", Sampling(levels, steps, "epsilon", dualfast=DualFast(weights=weights)))
    run = Sampling(levels, steps, "epsilon", 2)
    second = multistep("m", run, "noise", last_steps="full")
    assert np.abs(end(mixed) - end(second)).max() < 1e-12


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("tau", ["previous", "first"])
def test_constant_noise_is_left_alone(name, tau):
    """Data at one point: the noise estimate never changes, so there is nothing to mix."""
    start = np.array([1.3, -0.4])
    plain = base(name, 6)
    mixed = base(name, 6, DualFast(0.4, tau))
    alpha, sigma = plain.levels.alpha, plain.levels.sigma

    def network(latent: Array, call: int) -> Array:
        return (latent - alpha[call] * 0.5) / sigma[call]

    assert np.abs(walk(plain, network, start)[-1] - walk(mixed, network, start)[-1]).max() < 1e-12


@pytest.mark.parametrize("prediction", ["epsilon", "v", "denoised"])
def test_mixing_is_the_same_in_both_forms(prediction):
    run = Sampling(uniform_log_snr, 7, prediction, dualfast=DualFast(0.3))
    noise = multistep("n", run, "noise").matrices
    data = multistep("d", run, "data").matrices
    assert np.abs(noise - data).max() < 1e-13 * np.abs(noise).max()


def test_the_network_s_own_estimates_are_kept():
    """Two strengths give the same first two estimates, and the cache is never a mixed one."""
    first, second = (base("dpm_solver", 6, DualFast(strength)) for strength in (0.1, 0.4))
    assert np.array_equal(first.matrices[:, 1:], second.matrices[:, 1:])
    assert first.calls == second.calls == 6


def test_few_steps_gain_and_many_lose():
    """No approximation error is in this problem, so the gain is of discretisation."""

    def constant(steps: int, weight: float) -> SolverStep:
        weights = (0.0,) + (weight,) * (steps - 1)
        run = Sampling(uniform_log_snr, steps, "epsilon", 2, dualfast=DualFast(weights=weights))
        return multistep("m", run, "noise", last_steps="full")

    expected = {5: (0.133, 0.108), 6: (0.0969, 0.0642), 8: (0.0730, 0.0454), 10: (0.0593, 0.0286),
                20: (0.0195, 0.0141), 40: (0.0055, 0.0109), 160: (0.0004, 0.0042)}  # fmt: skip
    for steps, (plain, mixed) in expected.items():
        assert error(constant(steps, 0.0)) == pytest.approx(plain, rel=0.2, abs=6e-5)
        assert error(constant(steps, 0.25)) == pytest.approx(mixed, rel=0.2)
    falls = np.log2(error(constant(160, 0.25)) / error(constant(320, 0.25)))
    assert falls < 1.2
    fading = np.log2(error(constant(160, 2.5 / 160)) / error(constant(320, 2.5 / 320)))
    assert fading == pytest.approx(1.97, abs=0.1)


def test_first_reference_does_not_converge():
    def fixed(steps: int) -> float:
        weights = (0.0,) + (0.25,) * (steps - 1)
        return error(base("ddim", steps, DualFast(tau="first", weights=weights)))

    assert fixed(160) > 0.05


@pytest.mark.parametrize(
    ("dualfast", "found"),
    [(DualFast(-0.1), ">= 0"), (DualFast(weights=(0.0, 0.1)), "one for each of the 6 steps")],
)
def test_refuses_weights_that_cannot_be(dualfast, found):
    with pytest.raises(ValueError, match=found):
        base("ddim", 6, dualfast)


def test_refuses_solvers_that_have_no_place_for_it():
    run = Sampling(uniform_log_snr, 6, "epsilon", 2, dualfast=DualFast(0.1))
    with pytest.raises(ValueError, match="ddim, dpm_solver, dpm_solver_pp, unipc"):
        solve("dpm_solver_singlestep", replace(run))

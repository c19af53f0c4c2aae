"""Exponential integrators in half log-SNR: the common part of DPM-Solver and DPM-Solver++.

With h the step in half log-SNR, "data" form integrates the clean estimate m, "noise" form the noise
estimate e:

    latent' = sigma'/sigma latent + alpha' ∫ exp(-(h - u)) m du
    latent' = alpha'/alpha latent - sigma' ∫ exp(h - u) e du

One is the other with alpha and sigma exchanged and h negated, so there is one set of weights. A
polynomial through the last estimates (multistep) or through estimates inside the step (singlestep)
takes the place of m or e. With k = (1 + eta) h and fresh noise of strength eta the data form keeps
exp(-eta h) more of its start and forgets at rate k.

The published third-order multistep formulas have half of D2, which leaves them second order; the
Taylor term needs the factor 2.
Source: Lu et al. (2022), DPM-Solver, section 3, and DPM-Solver++, section 4 and appendix B.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from optimize.ir.noise_path import Array, Levels
from optimize.ir.solver_step import Estimate, SolverStep, recorded
from optimize.passes.solvers.dualfast import DualFast
from optimize.passes.solvers.solver_base import Sampling, Variant

Form = Literal["data", "noise"]
LastSteps = Literal["lower", "falling", "full", "mr_sampler"]
"""Orders of the last steps: falling to 1 in short runs; falling in every run; as high as before; or
falling in short runs and then high again, as the MR Sampler's code has it."""

FEW_STEPS = 15
"""Below this many steps "lower" lowers the order of the last two, as diffusers does."""


@dataclass(frozen=True)
class Weights:
    """latent' = keep latent + first m + second D1 + third D2 + noise z over one step."""

    keep: float
    first: float
    second: float
    third: float
    noise: float


@dataclass(frozen=True)
class Integrator:
    """The weights of steps between levels.

    Args:
        levels: of the run.
        form: what is integrated.
        eta: strength of fresh noise.
        variant: of the second-order term.
    """

    levels: Levels
    form: Form
    eta: float
    variant: Variant

    def width(self, start: int, end: int) -> float:
        """The step in half log-SNR; infinite when it ends without noise."""
        half = self.levels.half_log_snr
        return float(half[end] - half[start])

    def weights(self, start: int, end: int) -> Weights:
        """Of the step from one level to a later one; without noise at the end, first order."""
        alpha, sigma = self.levels.alpha, self.levels.sigma
        if sigma[end] == 0:
            keep = alpha[end] / alpha[start] if self.form == "noise" else 0.0
            first = alpha[end] if self.form == "data" else -keep * sigma[start]
            return Weights(keep, first, 0.0, 0.0, 0.0)
        h, eta = self.width(start, end), self.eta
        if self.form == "data":
            keep = sigma[end] / sigma[start] * np.exp(-eta * h)
            rate, scale = (1 + eta) * h, alpha[end]
            # From the levels themselves, so that constants stay exact at pure noise, too.
            first = alpha[end] - keep * alpha[start]
            noise = sigma[end] * np.sqrt(-np.expm1(-2 * eta * h))
        else:
            keep = alpha[end] / alpha[start]
            rate, scale = -h, (1 + eta) * sigma[end]
            first = scale * -np.expm1(h)
            noise = sigma[end] * np.sqrt(eta * np.expm1(2 * h))
        phi1 = -np.expm1(-rate)
        phi2 = 1 - phi1 / rate
        phi3 = 0.5 - phi2 / rate
        second = first / 2 if self.variant == "midpoint" else scale * phi2
        return Weights(keep, first, second, scale * phi3, noise)

    def exact_second(self, start: int, end: int) -> float:
        """The weight of D1 from its own integral, whatever the variant."""
        return Integrator(self.levels, self.form, self.eta, "taylor").weights(start, end).second

    def of(self, seen: Estimate) -> Array:
        """What this form integrates."""
        return seen.clean if self.form == "data" else seen.noise


def check_form(name: str, levels: Levels, form: Form) -> None:
    """Refuses the noise form at pure noise.

    Raises:
        ValueError: the first level has no signal, so alpha'/alpha is infinite.
    """
    if form == "noise" and levels.alpha[0] <= 0:
        raise ValueError(
            f"{name}: found pure noise (alpha = 0) at the start, expected some signal, because it "
            "integrates the noise estimate; use dpm_solver_pp, or a schedule that starts below"
        )


def multistep(
    name: str,
    run: Sampling,
    form: Form,
    *,
    last_steps: LastSteps = "lower",
    third_order_factor: float = 2.0,
) -> SolverStep:
    """A solver that looks back at estimates of earlier steps: one call per step.

    Args:
        name: of the result.
        run: what is to be solved; order 1, 2 or 3.
        form: what is integrated.
        last_steps: orders of the last steps; a last sigma of 0 always makes that step first order.
        third_order_factor: 2; the published constant is 1.
    Raises:
        ValueError: the run does not suit the solver.
    """
    levels = run.levels(run.calls)
    check_form(name, levels, form)
    integrator = Integrator(levels, form, run.eta, run.variant)
    half = levels.half_log_snr
    orders = step_orders(levels, run.order, last_steps)
    dualfast = run.dualfast if run.dualfast is not None else DualFast(0.0)
    mixing = dualfast.mixing(run.calls)

    def advance(
        call: int, latent: Array, seen: Estimate, kept: list[Array], noise: Array
    ) -> tuple[Array, Sequence[Array]]:
        *earlier, tau = kept
        alpha, sigma = levels.alpha[call], levels.sigma[call]
        mixed = dualfast.mixed(mixing[call], latent, seen, tau, alpha, sigma)
        now = integrator.of(mixed if dualfast.replace_history else seen)
        weights, order = integrator.weights(call, call + 1), orders[call]
        moved = weights.keep * latent + weights.first * integrator.of(mixed) + weights.noise * noise
        if order > 1:
            h = integrator.width(call, call + 1)
            r0 = (half[call] - half[call - 1]) / h
            change = (now - earlier[0]) / r0
        if order == 2:
            moved = moved + weights.second * change
        if order == 3:
            r1 = (half[call - 1] - half[call - 2]) / h
            bend = (change - (earlier[0] - earlier[1]) / r1) / (r0 + r1)
            second = integrator.exact_second(call, call + 1)
            moved = moved + second * (change + r0 * bend)
            moved = moved + weights.third * third_order_factor * bend
        return moved, [now, *earlier][:-1] + [dualfast.kept(call, seen, tau)]

    # Two earlier estimates and one more column for tau; what the orders do not read is dropped.
    return recorded(
        name, levels, run.prediction, advance, 3, noisy=run.eta > 0, threshold=run.threshold
    )


def step_orders(levels: Levels, order: int, last_steps: LastSteps) -> list[int]:
    """The order of each step of a multistep solver: what history and the rules allow."""
    steps = levels.steps
    orders = []
    for step in range(steps):
        use = min(order, step + 1)
        remaining = steps - step
        if last_steps == "falling" or (last_steps == "lower" and steps < FEW_STEPS):
            use = min(use, remaining)
        if last_steps == "mr_sampler" and steps < 10 and remaining > 1:
            use = min(use, max(1, remaining - 1))
        orders.append(1 if levels.sigma[step + 1] == 0 else use)
    return orders


def singlestep(name: str, run: Sampling, form: Form, *, fixed: bool = False) -> SolverStep:
    """A solver that looks inside each step: as many calls per step as its order.

    The levels of the run are those of the calls; a step of order 3 goes over three of them, so that
    the points inside follow the same schedule.

    Args:
        name: of the result.
        run: what is to be solved; order 1, 2 or 3.
        form: what is integrated.
        fixed: every step has the full order, in place of the "fast" plan, whose last are lower.
    Raises:
        ValueError: the run does not suit the solver.
    """
    if run.eta > 0 or run.dualfast is not None:
        raise ValueError(f"{name}: found eta or dualfast, expected neither; use a multistep solver")
    levels = run.levels(run.calls)
    check_form(name, levels, form)
    integrator = Integrator(levels, form, 0.0, run.variant)
    places = [
        (first, stage, order)
        for first, order in _segments(levels, run.order, fixed)
        for stage in range(order)
    ]

    def advance(
        call: int, latent: Array, seen: Estimate, kept: list[Array], noise: Array
    ) -> tuple[Array, Sequence[Array]]:
        start, stage, order = places[call]
        now = integrator.of(seen)
        origin, at_start, at_inner = kept if stage else (latent, now, now)
        weights = integrator.weights(start, call + 1)
        moved = weights.keep * origin + weights.first * at_start
        if stage == 1:
            r1 = integrator.width(start, call) / integrator.width(start, call + 1)
            second = weights.second
            if order == 3:  # the second inner point
                second = integrator.exact_second(start, call + 1)
            moved = moved + second / r1 * (now - at_start)
        if stage == 2:
            h = integrator.width(start, call + 1)
            r1, r2 = (integrator.width(start, start + i) / h for i in (1, 2))
            second = integrator.exact_second(start, call + 1)
            if run.variant == "midpoint":
                moved = moved + second / r2 * (now - at_start)
            else:
                near, far = (at_inner - at_start) / r1, (now - at_start) / r2
                moved = moved + second * (r2 * near - r1 * far) / (r2 - r1)
                moved = moved + weights.third * 2 * (far - near) / (r2 - r1)
        return moved, (origin, at_start, now)

    return recorded(name, levels, run.prediction, advance, 3, threshold=run.threshold)


def _segments(levels: Levels, order: int, fixed: bool) -> list[tuple[int, int]]:
    """(first level, order) of each step of a singlestep run."""
    orders = [order] * (levels.steps // order) if fixed else fast_plan(levels.steps, order)
    if levels.sigma[-1] == 0 and orders[-1] > 1:
        orders[-1:] = [orders[-1] - 1, 1]
    firsts = np.cumsum([0, *orders[:-1]])
    return [(int(first), order) for first, order in zip(firsts, orders, strict=True)]


def fast_plan(calls: int, order: int) -> list[int]:
    """Orders of the steps of a singlestep run, which add up to the calls ("DPM-Solver-fast")."""
    if order == 3 and calls % 3 == 0 and calls >= 3:
        return [3] * (calls // 3 - 1) + [2, 1]
    rest = [calls % order] if calls % order else []
    return [order] * (calls // order) + rest

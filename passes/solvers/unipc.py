"""UniPC: a multistep predictor whose point is corrected once the network has seen it.

The estimate at the predicted point costs no further call: it is the next step's own. The corrector
raises the order by one.
Source: Zhao et al. (2023), UniPC, algorithms 1 and 2 with B(h) = exp(h) - 1 ("bh2"), data form.
"""

from collections.abc import Sequence

import numpy as np

from optimize.ir.noise_path import Array, Levels
from optimize.ir.solver_step import Estimate, SolverStep, recorded
from optimize.passes.solvers.dualfast import DualFast
from optimize.passes.solvers.exponential import step_orders
from optimize.passes.solvers.solver_base import Sampling


def unipc(run: Sampling) -> SolverStep:
    """UniPC, predictor of order 1, 2 or 3, corrector one higher."""
    levels = run.levels(run.calls)
    orders = step_orders(levels, run.order, "falling")
    dualfast = run.dualfast if run.dualfast is not None else DualFast(0.0)
    mixing = dualfast.mixing(run.calls)

    def advance(
        call: int, latent: Array, seen: Estimate, kept: list[Array], noise: Array
    ) -> tuple[Array, Sequence[Array]]:
        origin, tau, *earlier = kept
        if call > 0:
            origin = _corrected(levels, call, orders[call - 1], origin, seen.clean, earlier)
        else:
            origin = latent
        alpha, sigma = levels.alpha[call], levels.sigma[call]
        mixed = dualfast.mixed(mixing[call], latent, seen, tau, alpha, sigma)
        clean = mixed.clean if dualfast.replace_history else seen.clean
        moved = _first_order(levels, call, origin, mixed.clean)
        for weight, change in _changes(levels, call, orders[call], clean, earlier):
            moved = moved + weight * change
        return moved, [origin, dualfast.kept(call, seen, tau), clean, *earlier[:-1]]

    name = f"unipc_{run.order}"
    return recorded(name, levels, run.prediction, advance, 5, threshold=run.threshold)


def _first_order(levels: Levels, call: int, origin: Array, clean: Array) -> Array:
    keep = levels.sigma[call + 1] / levels.sigma[call]
    first: Array = keep * origin + (levels.alpha[call + 1] - keep * levels.alpha[call]) * clean
    return first


def _changes(
    levels: Levels, call: int, order: int, clean: Array, earlier: Sequence[Array]
) -> list[tuple[float, Array]]:
    """Weights and finite differences of the predictor's step from `call` to the next level."""
    if order == 1:
        return []
    half = levels.half_log_snr
    h = half[call + 1] - half[call]
    ratios = [(half[call - age] - half[call]) / h for age in range(1, order)]
    # Of order 2 any weight is right to that order; one half is the method's.
    shares = [0.5] if order == 2 else _shares(ratios, h)
    lead = levels.alpha[call + 1] * -np.expm1(-h)
    return [
        (lead * share, (old - clean) / ratio)
        for share, ratio, old in zip(shares, ratios, earlier, strict=False)
    ]


def _corrected(
    levels: Levels,
    call: int,
    order: int,
    origin: Array,
    clean: Array,
    earlier: Sequence[Array],
) -> Array:
    """The step that led to `call`, once more with the estimate at its end."""
    half = levels.half_log_snr
    h = half[call] - half[call - 1]
    before, *older = earlier
    ratios = [(half[call - 1 - age] - half[call - 1]) / h for age in range(1, order)]
    shares = [0.5] if order == 1 else _shares([*ratios, 1.0], h)
    lead = levels.alpha[call] * -np.expm1(-h)
    moved = _first_order(levels, call - 1, origin, before)
    points = [*older[: order - 1], clean]
    for share, ratio, point in zip(shares, [*ratios, 1.0], points, strict=True):
        moved = moved + lead * share * (point - before) / ratio
    return moved


def _shares(ratios: Sequence[float], h: float) -> Array:
    """Weights that make the step exact for polynomials through the points at these ratios."""
    size = len(ratios)
    matrix = np.array(ratios)[None, :] ** np.arange(size)[:, None]
    phi = np.expm1(-h) / -h - 1
    right = []
    for power in range(1, size + 1):
        factorial = float(np.prod(np.arange(1, power + 1)))
        right.append(phi * factorial / np.expm1(-h))
        phi = phi / -h - 1 / (factorial * (power + 1))
    shares: Array = np.linalg.solve(matrix, np.array(right))
    return shares

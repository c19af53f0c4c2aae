"""DPM-Solver++ multistep, orders 1, 2 (2M) and 3 (3M), in the clean estimate.

With h the step in half log-SNR, r0 and r1 the two steps before it relative to h, and m0, m1, m2 the
clean estimates (newest first):

    latent' = sigma'/sigma latent + alpha' (phi1 m0 + phi2 D1 + phi3 D2)
    A = (m0 - m1)/r0,  B = (m1 - m2)/r1
    D1 = A + r0/(r0 + r1) (A - B),  D2 = 2 (A - B)/(r0 + r1)

The published third-order formula has half of D2, which leaves it second order; the Taylor term
needs the factor 2.
Source: Lu et al. (2022), DPM-Solver++, algorithm 2 and appendix B; D2 corrected.
"""

import numpy as np
from numpy.typing import NDArray

from optimize.ir.denoise import Levels, Prediction
from optimize.ir.solver_step import SolverStep, data_step

FEW_STEPS = 15
"""Below this many steps the last two lower their order, as in diffusers."""

START_ALPHA = 1e-3
"""Stands for alpha = 0 (pure noise) in step ratios, where the log-SNR is minus infinity."""


def dpm_solver_pp(
    levels: Levels,
    prediction: Prediction,
    order: int = 2,
    *,
    lower_order_final: bool = True,
    third_order_factor: float = 2.0,
) -> SolverStep:
    """DPM-Solver++ with midpoint second-order steps.

    Args:
        levels: steps + 1 noise levels; a last sigma of 0 makes the last step first order.
        prediction: what the network outputs.
        order: 1, 2 or 3; the first steps use what history there is.
        lower_order_final: with fewer than 15 steps, end with orders 2 and 1.
        third_order_factor: 2; the published constant is 1.
    Raises:
        ValueError: an order that does not exist, or two equal noise levels in a row.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"dpm_solver_pp: found order {order}, expected 1, 2 or 3")
    alpha, sigma = levels.alpha, levels.sigma
    if np.any(np.diff(sigma / np.maximum(alpha, START_ALPHA)) >= 0):
        raise ValueError("dpm_solver_pp: found noise levels that do not decrease")
    safe = np.where(sigma > 0, sigma, 1.0)
    with np.errstate(divide="ignore"):
        half_log_snr = np.log(np.maximum(alpha, START_ALPHA)) - np.log(safe)
    half_log_snr[sigma == 0] = np.inf
    rows = []
    for step in range(levels.steps):
        remaining = levels.steps - step
        use = min(order, step + 1)
        if lower_order_final and levels.steps < FEW_STEPS:
            use = min(use, remaining)
        if sigma[step + 1] == 0:
            use = 1
        rows.append(_row(alpha, sigma, half_log_snr, step, use, third_order_factor))
    padded = np.array([row + [0.0] * (order + 1 - len(row)) for row in rows])
    return data_step(f"dpm_solver_pp_{order}", levels, prediction, padded)


def _row(
    alpha: NDArray[np.float64],
    sigma: NDArray[np.float64],
    half_log_snr: NDArray[np.float64],
    step: int,
    order: int,
    third_order_factor: float,
) -> list[float]:
    """(a, b0, b1 …) of one step."""
    keep = sigma[step + 1] / sigma[step]
    if order == 1:
        return [keep, alpha[step + 1] - keep * alpha[step]]
    h = half_log_snr[step + 1] - half_log_snr[step]
    # alpha' phi1 from the levels themselves, so that constants stay exact at any start.
    first = alpha[step + 1] - keep * alpha[step]
    r0 = (half_log_snr[step] - half_log_snr[step - 1]) / h
    if order == 2:
        return [keep, first * (1 + 1 / (2 * r0)), -first / (2 * r0)]
    r1 = (half_log_snr[step - 1] - half_log_snr[step - 2]) / h
    phi1 = -np.expm1(-h)
    phi2 = 1 - phi1 / h
    phi3 = 0.5 - phi2 / h
    second, third = alpha[step + 1] * phi2, alpha[step + 1] * phi3 * third_order_factor
    share = r0 / (r0 + r1)
    from_a = second * (1 + share) + third / (r0 + r1)
    from_b = -second * share - third / (r0 + r1)
    return [keep, first + from_a / r0, -from_a / r0 + from_b / r1, -from_b / r1]

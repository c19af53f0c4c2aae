"""Adams-Bashforth steps along the flow: Euler with the velocity extrapolated from earlier ones.

Flow models are trained so that paths are nearly straight in sigma: their velocity changes slowly
and evenly there, which suits a polynomial in sigma better than one in log-SNR.

    latent' = latent + w0 velocity + w1 velocity[-1] + w2 velocity[-2]

with the weights that integrate the polynomial through the last velocities over the step.
Source: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section III.5,
    for uneven steps.
"""

from collections.abc import Sequence

import numpy as np

from optimize.ir.noise_path import Array
from optimize.ir.solver_step import Estimate, SolverStep, recorded
from optimize.passes.solvers.solver_base import Sampling


def adams_bashforth(run: Sampling) -> SolverStep:
    """Adams-Bashforth of order 1 (Euler), 2 or 3; the first steps use what history there is."""
    levels, order = run.levels(run.calls), run.order
    sigma = levels.sigma

    def advance(
        call: int, latent: Array, seen: Estimate, kept: list[Array], noise: Array
    ) -> tuple[Array, Sequence[Array]]:
        velocities = [seen.noise - seen.clean, *kept]
        known = sigma[max(0, call + 1 - order) : call + 1][::-1]
        moved = latent
        for weight, velocity in zip(
            _weights(known, sigma[call], sigma[call + 1]), velocities, strict=False
        ):
            moved = moved + weight * velocity
        return moved, velocities[:-1]

    name = f"adams_bashforth_{order}"
    return recorded(name, levels, run.prediction, advance, 2, threshold=run.threshold)


def _weights(nodes: Array, start: float, end: float) -> Array:
    """Integrals from start to end of the Lagrange polynomials of the nodes."""
    width = end - start
    # Powers relative to the step keep the small system well conditioned.
    powers = ((nodes - start) / width)[None, :] ** np.arange(len(nodes))[:, None]
    moments = 1.0 / np.arange(1, len(nodes) + 1)
    weights: Array = np.linalg.solve(powers, moments) * width
    return weights

"""Adams-Bashforth steps along the flow: Euler with the velocity extrapolated from earlier ones.

Flow models are trained so that paths are nearly straight in sigma: their velocity changes slowly
and evenly there, which suits a polynomial in sigma better than one in log-SNR.

    latent' = latent + w0 velocity + w1 velocity[-1] + w2 velocity[-2]

with the weights that integrate the polynomial through the last velocities over the step.
Source: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section III.5,
    for uneven steps.
"""

import numpy as np

from optimize.ir.denoise import Levels, Prediction
from optimize.ir.solver_step import DataStep, SolverStep


def adams_bashforth(levels: Levels, prediction: Prediction, order: int = 2) -> SolverStep:
    """Adams-Bashforth of order 1 (Euler), 2 or 3; the first steps use what history there is.

    Raises:
        ValueError: the model does not predict the flow, or the order does not exist.
    """
    if prediction != "flow":
        raise ValueError(
            f"adams_bashforth: found prediction {prediction!r}, expected 'flow'; use solver "
            "'dpm_solver_pp' instead"
        )
    if order not in (1, 2, 3):
        raise ValueError(f"adams_bashforth: found order {order}, expected 1, 2 or 3")
    sigma = levels.sigma
    # Columns: latent, velocities newest first; then what is kept, which is the velocity itself.
    table = np.zeros((levels.steps, 1 + order + (2 if order > 1 else 0)))
    table[:, 0] = 1.0
    for step in range(levels.steps):
        known = sigma[max(0, step + 1 - order) : step + 1][::-1]
        table[step, 1 : 1 + len(known)] = _weights(known, sigma[step], sigma[step + 1])
    if order > 1:
        table[:, -1] = 1.0
    return DataStep(f"adams_bashforth_{order}", table, order - 1)


def _weights(nodes: np.ndarray, start: float, end: float) -> np.ndarray:
    """Integrals from start to end of the Lagrange polynomials of the nodes."""
    width = end - start
    # Powers relative to the step keep the small system well conditioned.
    powers = ((nodes - start) / width)[None, :] ** np.arange(len(nodes))[:, None]
    moments = 1.0 / np.arange(1, len(nodes) + 1)
    weights: np.ndarray = np.linalg.solve(powers, moments) * width
    return weights

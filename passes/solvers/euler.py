"""Euler and Heun steps along the flow, and Euler steps for any other model (which are DDIM's).

    Euler   latent' = latent + (sigma' - sigma) velocity
    Heun    latent' = latent + (sigma' - sigma) (velocity + velocity at the Euler step's end) / 2

Source: Esser et al. (2024), Scaling Rectified Flow Transformers, section 2; Karras et al. (2022),
    algorithm 1.
"""

from collections.abc import Sequence

import numpy as np

from optimize.ir.noise_path import Array, Levels
from optimize.ir.solver_step import Estimate, SolverStep, plain_step, recorded
from optimize.passes.solvers.solver_base import Sampling


def euler(run: Sampling) -> SolverStep:
    """The Euler solver of a flow model."""
    return plain_step(run.levels(run.calls), run.prediction)


def heun(run: Sampling) -> SolverStep:
    """Heun's second-order solver of a flow model: two calls per step, one in the last.

    The last step would end at a level the network was not trained on, so it is Euler's; an even
    number of calls leaves one more step to Euler.
    """
    outer = run.levels(run.calls // 2 + 1)
    doubles = run.calls - outer.steps
    # Index of the step each call belongs to, and whether it is its second call.
    places = [
        (step, second)
        for step in range(outer.steps)
        for second in ((False, True) if step < doubles else (False,))
    ]
    at = np.array([step + second for step, second in places])
    levels = Levels(
        np.append(outer.alpha[at], outer.alpha[-1]),
        np.append(outer.sigma[at], outer.sigma[-1]),
        outer.timestep[at],
        outer.path,
    )

    def advance(
        call: int, latent: Array, seen: Estimate, kept: list[Array], noise: Array
    ) -> tuple[Array, Sequence[Array]]:
        step, second = places[call]
        width = outer.sigma[step + 1] - outer.sigma[step]
        velocity = seen.noise - seen.clean
        if second:
            origin, first = kept
            return origin + width / 2 * (first + velocity), (latent, velocity)
        return latent + width * velocity, (latent, velocity)

    return recorded("heun", levels, run.prediction, advance, 2, threshold=run.threshold)

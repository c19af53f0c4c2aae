"""DDIM, the first-order update in the clean estimate, with fresh noise of strength eta.

Source: Song et al. (2021), Denoising Diffusion Implicit Models, equations 12 and 16.
"""

from collections.abc import Sequence

import numpy as np

from optimize.ir.noise_path import Array
from optimize.ir.solver_step import Estimate, SolverStep, recorded
from optimize.passes.solvers.dualfast import DualFast
from optimize.passes.solvers.solver_base import Sampling


def ddim(run: Sampling) -> SolverStep:
    """DDIM; any prediction type. eta 0 adds no noise, eta 1 is the ancestral sampler of DDPM."""
    levels = run.levels(run.calls)
    alpha, sigma = levels.alpha, levels.sigma
    dualfast = run.dualfast if run.dualfast is not None else DualFast(0.0)
    mixing = dualfast.mixing(run.calls)

    def advance(
        call: int, latent: Array, seen: Estimate, kept: list[Array], noise: Array
    ) -> tuple[Array, Sequence[Array]]:
        (tau,) = kept
        mixed = dualfast.mixed(mixing[call], latent, seen, tau, alpha[call], sigma[call])
        share = alpha[call] / alpha[call + 1] * sigma[call + 1] / sigma[call]
        fresh = run.eta * sigma[call + 1] * np.sqrt(max(0.0, 1.0 - share**2))
        rest = np.sqrt(sigma[call + 1] ** 2 - fresh**2)
        # latent' = alpha' clean + rest noise, in the form that is exact at pure noise.
        keep = rest / sigma[call]
        moved = keep * latent + (alpha[call + 1] - keep * alpha[call]) * mixed.clean
        return moved + fresh * noise, (dualfast.kept(call, seen, tau),)

    return recorded(
        "ddim", levels, run.prediction, advance, 1, noisy=run.eta > 0, threshold=run.threshold
    )

"""DDIM without noise: the first-order update in the clean estimate.

Source: Song et al. (2021), Denoising Diffusion Implicit Models, equation 12 with sigma_t = 0.
"""

import numpy as np

from optimize.ir.denoise import Levels, Prediction
from optimize.ir.solver_step import DataStep, SolverStep, conversion, first_order


def ddim(levels: Levels, prediction: Prediction) -> SolverStep:
    """The deterministic DDIM solver; any prediction type."""
    table = np.concatenate([conversion(levels, prediction), first_order(levels)], axis=1)
    return DataStep("ddim", table, history=0)

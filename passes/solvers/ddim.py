"""DDIM without noise: the first-order update in the clean estimate.

Source: Song et al. (2021), Denoising Diffusion Implicit Models, equation 12 with sigma_t = 0.
"""

from optimize.ir.denoise import Levels, Prediction
from optimize.ir.solver_step import SolverStep, data_step, first_order


def ddim(levels: Levels, prediction: Prediction) -> SolverStep:
    """The deterministic DDIM solver; any prediction type."""
    return data_step("ddim", levels, prediction, first_order(levels))

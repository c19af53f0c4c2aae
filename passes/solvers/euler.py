"""Euler steps along the flow: latent + (sigma' - sigma) * velocity; first order.

Source: Esser et al. (2024), Scaling Rectified Flow Transformers, section 2.
"""

import numpy as np

from optimize.ir.denoise import Levels, Prediction
from optimize.ir.solver_step import EulerStep, SolverStep


def euler(levels: Levels, prediction: Prediction) -> SolverStep:
    """The Euler solver of a flow model.

    Raises:
        ValueError: the model does not predict the flow.
    """
    if prediction != "flow":
        raise ValueError(
            f"euler: found prediction {prediction!r}, expected 'flow'; use solver 'ddim' instead"
        )
    return EulerStep("euler", np.diff(levels.sigma)[:, None])

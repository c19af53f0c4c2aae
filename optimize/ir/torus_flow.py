"""What a user says about a Bayesian flow over angles: arguments, number of steps, accuracy."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimize.ir.errors import InputModelError

MAX_FLOW_STEPS = 1000


@dataclass(frozen=True)
class TorusFlowLoop:
    """Describes the sampling loop of a periodic Bayesian flow, so that a module can be captured.

    The module predicts the data, angles in radians, from the belief at each step. The belief of
    the next step is drawn anew around the prediction; the last prediction is the result.

    Args:
        mean: the module's argument that takes the belief's mean, [B, ...], radians, any period.
        concentration: the argument that takes the belief's concentration, shape of `mean`, >= 0.
        step_index: the argument that takes the step's number, [B] or scalar, in 1 … steps.
        steps: network calls, in [2, 1000]; exactly those of the training, for the accuracies of a
            run of another length are others.
        last_concentration: concentration that the last belief of the training reaches, > 0.
    Source: Wu et al. (2025), arXiv 2502.02016, algorithm 2.
    """

    mean: str = "mean"
    concentration: str = "concentration"
    step_index: str = "step_index"
    steps: int = 10
    last_concentration: float = 1000.0

    def __post_init__(self) -> None:
        steps = self.steps
        if (
            isinstance(steps, bool)
            or not isinstance(steps, int)
            or not 2 <= steps <= MAX_FLOW_STEPS
        ):
            raise InputModelError(
                f"TorusFlowLoop: found steps {steps!r}, expected a whole number in "
                f"[2, {MAX_FLOW_STEPS}], the steps of the training"
            )
        last = self.last_concentration
        if not (math.isfinite(last) and 0 < last <= 1e6):
            raise InputModelError(
                f"TorusFlowLoop: found last_concentration {last}, expected a number in (0, 1e6]"
            )

    def accuracies(self) -> NDArray[np.float64]:
        """alpha_1 … alpha_steps of the observations."""
        # SciPy is not part of the torch-free half, but the command line names this class.
        from optimize.ir.von_mises_flow import accuracies

        return np.array(accuracies(self.steps, self.last_concentration))

    def observed(self) -> NDArray[np.float64]:
        """Accuracy of each observation after each step, [steps, steps - 1].

        Row i has alpha_1 … alpha_{i+1} and then zeros; no belief follows the last step, whose row
        is zero.
        """
        rows = np.tril(np.ones((self.steps, self.steps - 1))) * self.accuracies()[:-1]
        rows[-1] = 0.0
        return rows

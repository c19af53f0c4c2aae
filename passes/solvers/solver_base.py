"""What a solver is made from, and what the catalogue says of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from optimize.ir.denoise import Prediction
from optimize.ir.noise_path import Levels
from optimize.ir.solver_step import SolverStep, Threshold
from optimize.passes.solvers.dualfast import DualFast

Variant = Literal["midpoint", "taylor"]
"""How the second-order term is weighted: by half the first-order weight, or by its own integral
(called "heun" in diffusers)."""


@dataclass(frozen=True)
class Sampling:
    """One sampling run to be solved.

    Args:
        levels: number of steps → noise levels.
        calls: denoiser calls the solver may make.
        prediction: what the network returns.
        order: of the solver.
        variant: of second-order terms.
        eta: strength of fresh noise, >= 0; 0 is the differential equation without noise, 1 the
            reverse process.
        dualfast: mixing with earlier noise estimates.
        threshold: of the clean estimate.
    """

    levels: Callable[[int], Levels]
    calls: int
    prediction: Prediction
    order: int = 1
    variant: Variant = "midpoint"
    eta: float = 0.0
    dualfast: DualFast | None = None
    threshold: Threshold | None = None


@dataclass(frozen=True)
class Solver:
    """A line of the catalogue.

    Attributes:
        make: raises ValueError or InputModelError where the run does not suit the solver.
        highest_order: the orders are 1 to this.
        options: those of `Sampling` it takes besides `order`.
        flow_only: whether it integrates the velocity of flow models.
    """

    make: Callable[[Sampling], SolverStep]
    highest_order: int = 1
    options: frozenset[str] = frozenset()
    flow_only: bool = False

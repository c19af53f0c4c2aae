"""DualFast: the noise estimate is pushed away from an earlier, noisier one.

    noise' = (1 + c) noise(t) - c noise(tau),   c = strength * i / (N - 1) at step i, 0 at the last

It replaces the estimate in the first-order term of a base solver only, unless `replace_history`. On
a first-order base with c = 1 / (2 r0) this is exactly the second-order multistep solver, so judge
it against that one: what it gains at few steps is discretisation error.
Source: Yu et al. (2025), DualFast, equation 9; the shape of c is ours.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from optimize.ir.noise_path import Array
from optimize.ir.solver_step import Estimate

MANY_STEPS = 20
"""Above this a base solver of second order is better without (its order falls to 1)."""


@dataclass(frozen=True)
class DualFast:
    """How estimates are mixed.

    Args:
        strength: the largest c, >= 0; 0 changes nothing.
        tau: the earlier estimate: of the step before, or of the first step.
        weights: c of each step, in place of `strength`.
        replace_history: finite differences use mixed estimates too.
    """

    strength: float = 0.25
    tau: Literal["previous", "first"] = "previous"
    weights: tuple[float, ...] | None = None
    replace_history: bool = False

    def mixing(self, steps: int) -> Array:
        """[steps] float64: c of each step; 0 at the first, which has nothing before it.

        Raises:
            ValueError: a negative weight, or a list of another length.
        """
        if self.weights is not None:
            if len(self.weights) != steps:
                raise ValueError(
                    f"dualfast: found {len(self.weights)} weights, expected one for each of the "
                    f"{steps} steps"
                )
            mixing = np.array(self.weights, dtype=np.float64)
        else:
            mixing = self.strength * np.arange(steps) / max(1, steps - 1)
            mixing[-1] = 0.0
        if not np.all(mixing >= 0):
            raise ValueError(f"dualfast: found weights {mixing}, expected numbers >= 0")
        mixing[0] = 0.0
        return mixing

    def mixed(
        self,
        weight: float,
        latent: Array,
        seen: Estimate,
        earlier: Array,
        alpha: float,
        sigma: float,
    ) -> Estimate:
        """The estimate after mixing; `earlier` is the noise estimate of tau."""
        if weight == 0.0:
            return seen
        noise = (1.0 + weight) * seen.noise - weight * earlier
        # Mixing clean estimates of two latents would be another method.
        return Estimate((latent - sigma * noise) / alpha, noise)

    def kept(self, call: int, seen: Estimate, earlier: Array) -> Array:
        """The noise estimate that later steps will see: always one the network made."""
        return seen.noise if self.tau == "previous" or call == 0 else earlier

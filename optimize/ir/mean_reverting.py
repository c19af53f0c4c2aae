"""The noise schedule of mean-reverting diffusion, whose latents drift to a degraded image.

A latent at timestep t is `mean + alpha[t] * (clean - mean) + sigma[t] * noise`: between a clean
image at timestep 0 and the degraded one, `mean`, under stationary noise. Without its mean the
latent is that of an ordinary diffusion with the same alpha and sigma. All numbers are float64.

Source: Luo et al. (2023), Image restoration with mean-reverting stochastic differential equations,
section 3; Li et al. (2025), MaRS, section 3, for the steps between its timesteps.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from optimize.ir.errors import InputModelError

COSINE_OFFSET = 0.008


@dataclass(frozen=True)
class MeanRevertingSchedule:
    """The discrete cosine schedule of IR-SDE.

    Attributes:
        timesteps: length of the training schedule; its timesteps are the whole numbers in
            [0, timesteps].
        stationary_sigma: standard deviation of the noise a latent ends in, in data units, > 0.
        final_alpha: what is left of clean - mean at the last timestep, in (0, 1).
    Raises:
        InputModelError: a value is outside its range.
    """

    timesteps: int = 100
    stationary_sigma: float = 50 / 255
    final_alpha: float = 0.005

    def __post_init__(self) -> None:
        if self.timesteps < 1 or not self.stationary_sigma > 0 or not 0 < self.final_alpha < 1:
            raise InputModelError(
                f"MeanRevertingSchedule: found timesteps {self.timesteps}, stationary_sigma "
                f"{self.stationary_sigma} and final_alpha {self.final_alpha}, expected at least 1, "
                "above 0 and in (0, 1)"
            )

    @cached_property
    def rates(self) -> NDArray[np.float64]:
        """Speed of the drift to the mean at each timestep, [timesteps + 1], per unit of time."""
        count = self.timesteps + 2
        phase = (np.arange(count + 1) / count + COSINE_OFFSET) / (1 + COSINE_OFFSET)
        kept = np.cos(phase * np.pi / 2) ** 2
        rates: NDArray[np.float64] = 1 - kept[1:-1] / kept[0]
        return rates

    @cached_property
    def time_step(self) -> float:
        """Time between two timesteps, such that the last alpha is `final_alpha`."""
        return float(-np.log(self.final_alpha) / self.rates.sum())

    @cached_property
    def log_alphas(self) -> NDArray[np.float64]:
        """Logarithm of alpha at each timestep, [timesteps + 1], decreasing, below 0."""
        log_alphas: NDArray[np.float64] = -np.cumsum(self.rates) * self.time_step
        return log_alphas

    def alpha(self, timestep: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of clean - mean in a latent, at any timesteps in [0, timesteps].

        Between two whole timesteps its logarithm is linear: the rate is constant there.
        """
        grid = np.arange(self.timesteps + 1)
        alpha: NDArray[np.float64] = np.exp(np.interp(timestep, grid, self.log_alphas))
        return alpha

    def sigma(self, timestep: NDArray[np.float64]) -> NDArray[np.float64]:
        """Standard deviation of the noise in a latent, at any timesteps in [0, timesteps]."""
        sigma: NDArray[np.float64] = self.stationary_sigma * np.sqrt(1 - self.alpha(timestep) ** 2)
        return sigma

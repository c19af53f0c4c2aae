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

from optimize.ir.errors import InputModelError
from optimize.ir.noise_path import Array, Levels, NoisePath

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
    def rates(self) -> Array:
        """Speed of the drift to the mean at each timestep, [timesteps + 1], per unit of time."""
        count = self.timesteps + 2
        phase = (np.arange(count + 1) / count + COSINE_OFFSET) / (1 + COSINE_OFFSET)
        kept = np.cos(phase * np.pi / 2) ** 2
        rates: Array = 1 - kept[1:-1] / kept[0]
        return rates

    @cached_property
    def time_step(self) -> float:
        """Time between two timesteps, such that the last alpha is `final_alpha`."""
        return float(-np.log(self.final_alpha) / self.rates.sum())

    @cached_property
    def log_alphas(self) -> Array:
        """Logarithm of alpha at each timestep, [timesteps + 1], decreasing, below 0."""
        log_alphas: Array = -np.cumsum(self.rates) * self.time_step
        return log_alphas

    def alpha(self, timestep: Array) -> Array:
        """Share of clean - mean in a latent, at any timesteps in [0, timesteps].

        Between two whole timesteps its logarithm is linear: the rate is constant there.
        """
        alpha: Array = np.exp(np.interp(timestep, self._whole_timesteps, self.log_alphas))
        return alpha

    def sigma(self, timestep: Array) -> Array:
        """Standard deviation of the noise in a latent, at any timesteps in [0, timesteps]."""
        sigma: Array = self.stationary_sigma * np.sqrt(1 - self.alpha(timestep) ** 2)
        return sigma

    def levels(self, steps: int) -> Levels:
        """The noise levels of a run: timesteps equally spaced, down to 0, where noise is left."""
        timestep = np.linspace(self.timesteps, 0, steps + 1)
        alpha, sigma = self.alpha(timestep), self.sigma(timestep)
        return Levels(alpha, sigma, timestep[:-1], self, self.prior)

    @property
    def path(self) -> NoisePath:
        """The schedule itself; its levels are sigma / alpha."""
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """The levels of timestep 0 and of the last one."""
        low, high = self.level(np.array([0.0, self.timesteps]))
        return float(low), float(high)

    @property
    def prior(self) -> float:
        """Standard deviation of the latent at pure noise."""
        return self.stationary_sigma

    def split(self, level: Array) -> tuple[Array, Array]:
        """Alpha and sigma at levels."""
        alpha = 1.0 / np.sqrt(1.0 + (level / self.stationary_sigma) ** 2)
        return alpha, level * alpha

    def time(self, level: Array) -> Array:
        """The timesteps of levels; those below the lowest of training have timestep 0."""
        alpha, _ = self.split(level)
        time: Array = np.interp(-np.log(alpha), -self.log_alphas, self._whole_timesteps)
        return time

    def level(self, time: Array) -> Array:
        """The levels of timesteps."""
        level: Array = self.sigma(time) / self.alpha(time)
        return level

    def level_at(self, half_log_snr: Array) -> Array:
        """The level at which log(alpha / sigma) is this."""
        level: Array = np.exp(-half_log_snr)
        return level

    @property
    def _whole_timesteps(self) -> Array:
        return np.arange(self.timesteps + 1.0)

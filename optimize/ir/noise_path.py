"""How much signal and noise a latent holds, as functions of a continuous noise level.

A latent is `alpha * clean + sigma * noise`. A *level* is what diffusers calls sigma: sigma / alpha
of a variance-preserving model, sigma itself of a flow model. A solver asks a path for any level
between those of training: the middle of a step, or a whole new spacing. All numbers are float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
"""Always float64."""

LEAST_ALPHA = 1e-3
"""Where a path that starts at pure noise begins, for what needs a finite level or log-SNR there."""

PURE_NOISE_SHARE = 0.8
"""Pure noise has a half log-SNR of minus infinity; solvers that divide by its steps are given that
of this share of the next level's alpha. Found by distance to the exact solution on zoo:digits-dit:
0.038, 0.033, 0.024 and 0.030 for shares of 0.5, 0.65, 0.8 and 0.9 (DPM-Solver++ 2M, 12 steps)."""


@dataclass(frozen=True)
class Levels:
    """Noise levels of one sampling run: one before each step and one after the last.

    Attributes:
        alpha, sigma: [steps + 1], decreasing noise; the last sigma may be 0.
        timestep: [steps], the model's own time argument of each step.
        path: where levels between these come from; None for a list that stands alone.
        prior: standard deviation of the latent at pure noise.
    """

    alpha: Array
    sigma: Array
    timestep: Array
    path: "NoisePath | None" = None
    prior: float = 1.0

    @property
    def steps(self) -> int:
        return len(self.timestep)

    @property
    def half_log_snr(self) -> Array:
        """[steps + 1]: log(alpha / sigma); finite at pure noise, infinite at sigma 0."""
        return half_log_snr(self.alpha, self.sigma)


def half_log_snr(alpha: Array, sigma: Array) -> Array:
    """log(alpha / sigma) of falling noise; finite at pure noise, infinite where sigma is 0."""
    alpha = np.array(alpha, dtype=np.float64)
    if len(alpha) > 1 and alpha[0] == 0:
        alpha[0] = PURE_NOISE_SHARE * alpha[1]
    with np.errstate(divide="ignore"):
        result: Array = np.log(alpha) - np.log(sigma)
    return result


class NoisePath(Protocol):
    """A forward process with a time that the network is told."""

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest level of training; the lowest is above 0."""
        ...

    @property
    def prior(self) -> float:
        """Standard deviation of the latent at pure noise."""
        ...

    def split(self, level: Array) -> tuple[Array, Array]:
        """Alpha and sigma at levels; (alpha of clean data, 0) at level 0."""
        ...

    def time(self, level: Array) -> Array:
        """The network's time argument at levels."""
        ...

    def level(self, time: Array) -> Array:
        """The inverse of `time`."""
        ...

    def level_at(self, half_log_snr: Array) -> Array:
        """The level at which log(alpha / sigma) is this."""
        ...


def levels_on(path: NoisePath, level: Array) -> Levels:
    """The noise levels of a run through given levels of a path, [steps + 1]."""
    alpha, sigma = path.split(level)
    return Levels(alpha, sigma, path.time(level[:-1]), path, path.prior)


@dataclass(frozen=True)
class FlowPath:
    """Flow matching: alpha = 1 - sigma, the level is sigma.

    Args:
        timestep_scale: the network's time is this times sigma.
        lowest: the lowest level of training, in (0, 1).
    """

    timestep_scale: float = 1000.0
    lowest: float = 1e-3

    @property
    def ends(self) -> tuple[float, float]:
        return self.lowest, 1.0

    @property
    def prior(self) -> float:
        return 1.0

    def split(self, level: Array) -> tuple[Array, Array]:
        return 1.0 - level, np.asarray(level, dtype=np.float64)

    def time(self, level: Array) -> Array:
        return level * self.timestep_scale

    def level(self, time: Array) -> Array:
        return time / self.timestep_scale

    def level_at(self, half_log_snr: Array) -> Array:
        return 1.0 / (1.0 + np.exp(half_log_snr))


class VariancePath:
    """Variance preserving: alpha**2 + sigma**2 = 1, the level is sigma / alpha.

    Between the discrete times of training the logarithm of the level is linear in time.

    Args:
        kept: cumulated products of 1 - beta, [train_steps], decreasing, in (0, 1).
    """

    def __init__(self, kept: Array | Sequence[float]) -> None:
        self.kept = np.asarray(kept, dtype=np.float64)
        # Zero terminal SNR: pure noise has no finite level.
        safe = np.maximum(self.kept, LEAST_ALPHA**2)
        self.log_levels = 0.5 * (np.log1p(-safe) - np.log(safe))

    @property
    def ends(self) -> tuple[float, float]:
        return float(np.exp(self.log_levels[0])), float(np.exp(self.log_levels[-1]))

    @property
    def prior(self) -> float:
        return 1.0

    def split(self, level: Array) -> tuple[Array, Array]:
        alpha = 1.0 / np.sqrt(1.0 + level**2)
        return alpha, level * alpha

    def time(self, level: Array) -> Array:
        found: Array = np.interp(np.log(level), self.log_levels, np.arange(len(self.log_levels)))
        return found

    def level(self, time: Array) -> Array:
        found: Array = np.exp(np.interp(time, np.arange(len(self.log_levels)), self.log_levels))
        return found

    def level_at(self, half_log_snr: Array) -> Array:
        level: Array = np.exp(-half_log_snr)
        return level


def beta_path(
    beta_start: float, beta_end: float, beta_schedule: str, train_steps: int
) -> VariancePath:
    """The path of a schedule of betas, linear in beta or ("scaled_linear") in its square root."""
    if beta_schedule == "linear":
        beta = np.linspace(beta_start, beta_end, train_steps)
    else:
        beta = np.linspace(beta_start**0.5, beta_end**0.5, train_steps) ** 2
    return VariancePath(np.cumprod(1.0 - beta))

"""Problems with known solutions: a two-component mixture and a Gaussian, on the linear schedule."""

from dataclasses import dataclass

import numpy as np

from optimize.ir.noise_path import Array, Levels

BETA = (0.1, 20.0)
NOISES = np.random.default_rng(0).standard_normal(64)


class LinearPath:
    """The continuous variance-preserving schedule of linear beta, time in (0, 1]."""

    prior = 1.0
    ends = (1e-3, 1.0)

    def log_alpha(self, time: Array) -> Array:
        low, high = BETA
        return -(high - low) * time**2 / 4 - low * time / 2

    def at_time(self, time: Array) -> tuple[Array, Array]:
        alpha = np.exp(self.log_alpha(time))
        return alpha, np.sqrt(-np.expm1(2 * self.log_alpha(time)))

    def split(self, level: Array) -> tuple[Array, Array]:
        alpha = 1.0 / np.sqrt(1.0 + level**2)
        return alpha, level * alpha

    def time(self, level: Array) -> Array:
        low, high = BETA
        half = -np.log(np.where(level > 0, level, 1e-30))
        change = 2 * (high - low) * np.logaddexp(0.0, -2 * half)
        return change / ((np.sqrt(low**2 + change) + low) * (high - low))

    def level(self, time: Array) -> Array:
        alpha, sigma = self.at_time(time)
        return sigma / alpha

    def level_at(self, half_log_snr: Array) -> Array:
        return np.exp(-half_log_snr)


def uniform_log_snr(steps: int, end: float = 0.02) -> Levels:
    """Levels from time 1 to `end`, uniform in half log-SNR."""
    path = LinearPath()
    start, stop = np.log(path.level(np.array([1.0, end])))
    level = np.exp(np.linspace(start, stop, steps + 1))
    alpha, sigma = path.split(level)
    return Levels(alpha, sigma, path.time(level[:-1]), path)


@dataclass(frozen=True)
class Mixture:
    """Data of several normal components on a line."""

    means: tuple[float, ...]
    weights: tuple[float, ...]
    deviation: float

    def clean(self, latent: Array, alpha: float, sigma: float) -> Array:
        """The exact clean estimate."""
        means, weights = np.array(self.means), np.array(self.weights)
        total = alpha**2 * self.deviation**2 + sigma**2
        distance = latent[..., None] - alpha * means
        logits = np.log(weights) - distance**2 / (2 * total)
        share = np.exp(logits - logits.max(axis=-1, keepdims=True))
        share /= share.sum(axis=-1, keepdims=True)
        return (share * (means + alpha * self.deviation**2 / total * distance)).sum(axis=-1)

    def epsilon(self, latent: Array, alpha: float, sigma: float) -> Array:
        """The exact noise estimate."""
        return (latent - alpha * self.clean(latent, alpha, sigma)) / sigma


MIXTURE = Mixture((-1.0, 0.7), (0.3, 0.7), 0.25)


def exact_solution(mixture: Mixture, latent: Array, steps: int = 4000) -> Array:
    """The probability flow from time 1 to 0.02 by classical Runge-Kutta in half log-SNR."""
    path = LinearPath()
    start, stop = -np.log(path.level(np.array([1.0, 0.02])))

    def slope(half: float, value: Array) -> Array:
        (alpha,), (sigma,) = path.split(np.array([np.exp(-half)]))
        # d latent / d half = sigma^2 latent - sigma epsilon, on a variance-preserving path.
        return sigma**2 * value - sigma * mixture.epsilon(value, alpha, sigma)

    width = (stop - start) / steps
    for step in range(steps):
        at = start + step * width
        first = slope(at, latent)
        second = slope(at + width / 2, latent + width / 2 * first)
        third = slope(at + width / 2, latent + width / 2 * second)
        fourth = slope(at + width, latent + width * third)
        latent = latent + width / 6 * (first + 2 * second + 2 * third + fourth)
    return latent

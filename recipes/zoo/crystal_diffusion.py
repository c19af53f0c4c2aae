"""The baseline: score matching on the torus with wrapped normal noise, same network.

Angles at noise level i are data + sigma_i noise, wrapped; sigma rises exponentially from 0.005 to
0.5 of a period over a thousand levels. The network's displacement over sigma squared is the score;
the loss measures it in units of its own standard deviation at that level.

Source: Jiao et al. (2023), Crystal Structure Prediction by Joint Equivariant Diffusion, sections
4.2 and appendix B (DiffCSP).
"""

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray

from optimize.ir.von_mises_flow import wrap
from optimize.recipes.zoo.crystal_data import MAX_ATOMS, Crystals
from optimize.recipes.zoo.crystal_flow import SAMPLING_BATCH, fractions
from optimize.recipes.zoo.torus_crystals import CrystalNetwork

LEVELS = 1000
SMALLEST_SIGMA, LARGEST_SIGMA = 0.005 * 2 * math.pi, 0.5 * 2 * math.pi
"""Standard deviations of the noise in radians."""

CORRECTOR_STEP = 0.4
"""Step of the Langevin corrector in units of sigma squared: step_lr = 1e-5 of the source."""

_PERIODS = 5


def sigmas() -> NDArray[np.float64]:
    """sigma_0 = 0, sigma_1 … sigma_LEVELS, [LEVELS + 1], radians."""
    levels = np.geomspace(SMALLEST_SIGMA, LARGEST_SIGMA, LEVELS)
    return np.concatenate([[0.0], levels])


def wrapped_score(
    difference: NDArray[np.float64], sigma: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Derivative of the logarithm of the wrapped normal density; broadcasts, radians."""
    shifted = wrap(difference)[..., None] + 2 * np.pi * np.arange(-_PERIODS, _PERIODS + 1)
    exponent = -0.5 * (shifted / sigma[..., None]) ** 2
    weight = np.exp(exponent - exponent.max(axis=-1, keepdims=True))
    mean = (weight * shifted).sum(axis=-1) / weight.sum(axis=-1)
    score: NDArray[np.float64] = -mean / sigma**2
    return score


@functools.cache
def score_deviations() -> NDArray[np.float64]:
    """Root mean square of the score at each level, [LEVELS + 1]; 1 at the unused level 0."""
    sigma = sigmas()[1:]
    # Equally probable normal numbers: the mean over them is one over the noise.
    quantile = (np.arange(2000) + 0.5) / 2000
    normal = np.sqrt(2) * torch.erfinv(torch.from_numpy(2 * quantile - 1)).numpy()
    score = wrapped_score(normal[None] * sigma[:, None], sigma[:, None])
    return np.concatenate([[1.0], np.sqrt((score**2).mean(axis=1))])


def diffusion_loss(
    network: CrystalNetwork,
    angles: torch.Tensor,
    crystals: Crystals,
    generator: np.random.Generator,
) -> torch.Tensor:
    """Mean squared error of the score in units of its deviation; arguments as `flow_loss`."""
    level = generator.integers(1, LEVELS + 1, size=len(angles))
    sigma = sigmas()[level][:, None, None]
    noise = sigma * generator.standard_normal(tuple(angles.shape))
    target = wrapped_score(noise, sigma) / score_deviations()[level][:, None, None]
    predicted = _call(network, wrap(angles.double().numpy() + noise), level, crystals)
    errors = (predicted.float() - torch.from_numpy(target).float()).square().mean(dim=-1)
    present = (crystals.atom_types > 0).float()
    return (errors * present).sum() / present.sum()


def _call(
    network: CrystalNetwork,
    angles: NDArray[np.float64],
    level: NDArray[np.int64],
    crystals: Crystals,
) -> torch.Tensor:
    variance = sigmas()[level] ** 2
    # Of a narrow normal distribution the inverse variance is the concentration.
    concentration = torch.from_numpy(1 / variance).float()[:, None, None].expand(angles.shape)
    shift: torch.Tensor = network(
        torch.from_numpy(angles).float(),
        concentration,
        torch.from_numpy(level).float(),
        crystals.atom_types,
        crystals.lattice,
    )
    # The score is the displacement towards the data over the variance.
    unit = torch.from_numpy(1 / (variance * score_deviations()[level])).float()
    return shift.float() * unit[:, None, None]


def sample_diffusion(
    network: CrystalNetwork,
    crystals: Crystals,
    generator: np.random.Generator,
    steps: int = LEVELS,
    *,
    corrector: bool = False,
    stochastic: bool = True,
) -> NDArray[np.float64]:
    """Fractional coordinates [S, MAX_ATOMS, 3] for the elements and lattices of `crystals`.

    Args:
        steps: levels visited, evenly spaced in the logarithm of sigma, in [1, LEVELS].
        corrector: a Langevin step before each prediction, which doubles the network calls.
        stochastic: ancestral sampling; otherwise the probability flow's Euler steps in sigma.
    """
    levels = np.linspace(LEVELS, 0, steps + 1).round().astype(np.int64)
    found = np.zeros((len(crystals), MAX_ATOMS, 3))
    for rows, part in crystals.by_size(SAMPLING_BATCH):
        shape = tuple(part.coordinates.shape)
        angles = generator.uniform(-np.pi, np.pi, shape)
        for level, following in zip(levels[:-1], levels[1:], strict=True):
            sigma, after = sigmas()[level], sigmas()[following]
            if corrector:
                step = CORRECTOR_STEP * sigma**2
                noise = generator.standard_normal(shape) if following > 0 else 0.0
                angles = angles + step * _score(network, angles, level, part)
                angles = angles + math.sqrt(2 * step) * noise
            score = _score(network, angles, level, part)
            if stochastic:
                noise = generator.standard_normal(shape)
                removed = sigma**2 - after**2
                angles = angles + removed * score + after / sigma * math.sqrt(removed) * noise
            else:
                angles = angles + sigma * (sigma - after) * score
            angles = wrap(angles)
        found[rows, : shape[1]] = fractions(angles)
    return found


def _score(
    network: CrystalNetwork, angles: NDArray[np.float64], level: int, crystals: Crystals
) -> NDArray[np.float64]:
    with torch.no_grad():
        predicted = _call(network, angles, np.full(len(crystals), level), crystals)
    score: NDArray[np.float64] = predicted.double().numpy() * score_deviations()[level]
    return score

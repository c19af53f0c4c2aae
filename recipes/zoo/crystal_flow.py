"""Training loss and plain sampler of the periodic Bayesian flow over coordinates.

The sampler is the float64 reference that captured programs are compared with.

Source: Wu et al. (2025), arXiv 2502.02016, algorithms 1 and 2 ("end back" sampling).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from optimize.ir.von_mises_flow import accuracies, belief, bessel_ratio, wrap
from optimize.recipes.zoo.crystal_data import MAX_ATOMS, Crystals
from optimize.recipes.zoo.torus_crystals import FLOW_STEPS, LARGEST_CONCENTRATION, TorusCrystals

SAMPLING_BATCH = 128


def flow_loss(
    model: TorusCrystals, angles: torch.Tensor, crystals: Crystals, generator: np.random.Generator
) -> torch.Tensor:
    """Mean divergence of the observations' distributions, to leading order, per angle.

    Args:
        angles: [B, atoms, 3], radians, the data.
        crystals: their elements and lattices; its coordinates are not used.
    """
    alphas = np.array(accuracies(FLOW_STEPS, LARGEST_CONCENTRATION))
    # Every step as often as any other: their losses differ much.
    step = generator.permutation(len(angles)) % FLOW_STEPS + 1
    deviation = generator.vonmises(0.0, alphas[:, None, None, None], (FLOW_STEPS, *angles.shape))
    seen = alphas[:, None] * (np.arange(1, FLOW_STEPS + 1)[:, None] < step)  # [steps, B]
    total = (seen[:, :, None, None] * np.exp(1j * deviation)).sum(axis=0)
    prior = generator.uniform(-np.pi, np.pi, size=angles.shape)
    unseen = (step == 1)[:, None, None]
    mean = np.where(unseen, prior, wrap(angles.double().numpy() + np.angle(total)))
    predicted = model(
        torch.from_numpy(mean).float(),
        torch.from_numpy(np.abs(total)).float(),
        torch.from_numpy(step).float(),
        crystals.atom_types,
        crystals.lattice,
    )
    difference = predicted.float() - angles
    difference = difference - 2 * math.pi * torch.round(difference / (2 * math.pi))
    weight = torch.from_numpy(FLOW_STEPS * alphas * bessel_ratio(alphas)).float()[step - 1]
    present = (crystals.atom_types > 0).float()
    errors = difference.square().mean(dim=-1) * weight[:, None]
    loss: torch.Tensor = (errors * present).sum() / present.sum()
    return loss


Observe = Callable[[int], NDArray[np.float64]]
"""Step → deviations u_1 … u_step of its observations from the prediction, [step, B, atoms, 3]."""


def flow_coordinates(
    predict: Callable[[NDArray[np.float64], NDArray[np.float64], int], NDArray[np.float64]],
    prior: NDArray[np.float64],
    observe: Observe,
    steps: int = FLOW_STEPS,
    last: float = LARGEST_CONCENTRATION,
) -> NDArray[np.float64]:
    """Runs the flow from a prior mean; only the last prediction is returned.

    Args:
        predict: (mean, concentration, step in 1 … steps) → angles, all of the shape of `prior`.
        prior: mean of the first belief, radians; its concentration is 0.
        observe: the observations' deviations; fresh ones for each step.
        steps, last: as for `accuracies`.
    Returns:
        Fractional coordinates, in [0, 1).
    """
    alphas = np.array(accuracies(steps, last))
    mean, concentration = prior, np.zeros_like(prior)
    for step in range(1, steps + 1):
        predicted = predict(mean, concentration, step)
        if step < steps:
            mean, concentration = belief(predicted + observe(step), alphas[:step])
    return fractions(predicted)


def fractions(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles in radians as fractional coordinates in [0, 1); -pi is 0."""
    share = np.mod(angles / (2 * np.pi) + 0.5, 1.0)
    return np.where(share < 1.0, share, 0.0)


def sample_flow(
    model: TorusCrystals, crystals: Crystals, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Fractional coordinates [S, MAX_ATOMS, 3] for the elements and lattices of `crystals`."""
    found = np.zeros((len(crystals), MAX_ATOMS, 3))
    alphas = accuracies(FLOW_STEPS, LARGEST_CONCENTRATION)
    for rows, part in crystals.by_size(SAMPLING_BATCH):
        shape = tuple(part.coordinates.shape)

        def predict(
            mean: NDArray[np.float64],
            concentration: NDArray[np.float64],
            step: int,
            part: Crystals = part,
        ) -> NDArray[np.float64]:
            with torch.no_grad():
                angles = model(
                    torch.from_numpy(mean).float(),
                    torch.from_numpy(concentration).float(),
                    torch.full((len(part),), float(step)),
                    part.atom_types,
                    part.lattice,
                )
            predicted: NDArray[np.float64] = angles.double().numpy()
            return predicted

        def observe(step: int, shape: tuple[int, ...] = shape) -> NDArray[np.float64]:
            return np.stack([generator.vonmises(0.0, alpha, shape) for alpha in alphas[:step]])

        prior = generator.uniform(-np.pi, np.pi, shape)
        found[rows, : shape[1]] = flow_coordinates(predict, prior, observe)
    return found

"""Whether a generated structure is the true one, and the share of structures that are."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from optimize.recipes.zoo.crystal_data import Crystals

TOLERANCE = 0.05
"""Largest distance of an atom from its place, in fractional coordinates."""

_REFINEMENTS = 3


def match_rate(crystals: Crystals, coordinates: NDArray[np.floating]) -> float:
    """The share of structures whose generated coordinates match, in [0, 1].

    Args:
        crystals: the true structures.
        coordinates: [S, MAX_ATOMS, 3], one generated set of fractional coordinates for each.
    """
    return float(np.mean(matches(crystals, coordinates)))


def matches(crystals: Crystals, coordinates: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which structures match, [S]; arguments as for `match_rate`."""
    types = crystals.atom_types.numpy()
    true = crystals.coordinates.numpy().astype(np.float64)
    found = [
        largest_displacement(types[i], true[i], coordinates[i].astype(np.float64)) <= TOLERANCE
        for i in range(len(crystals))
    ]
    return np.array(found)


def largest_displacement(
    atom_types: NDArray[np.int64], true: NDArray[np.float64], generated: NDArray[np.float64]
) -> float:
    """How far the worst placed atom is from its true place, in fractional coordinates.

    Distances are Euclidean lengths of wrapped differences of fractional coordinates, after the
    translation and the permutation of equal elements that suit best. Rotations are not tried: the
    lattice fixes the setting. A rare element's first atom is put on each candidate in turn, atoms
    are assigned by least squares, and the mean difference refines the translation.

    Args:
        atom_types: [atoms], int64; rows with 0 are no atoms.
        true, generated: [atoms, 3].
    """
    present = atom_types > 0
    types, true, generated = atom_types[present], true[present], generated[present]
    kinds, counts = np.unique(types, return_counts=True)
    candidates = np.flatnonzero(types == kinds[np.argmin(counts)])
    best = math.inf
    for candidate in candidates:
        shift = true[candidates[0]] - generated[candidate]
        for _ in range(_REFINEMENTS):
            difference = np.empty_like(true)
            for kind in kinds:
                rows = np.flatnonzero(types == kind)
                pairs = true[rows][:, None] - generated[rows][None] - shift
                pairs -= np.round(pairs)
                chosen = linear_sum_assignment((pairs**2).sum(axis=-1))
                difference[rows] = pairs[chosen]
            best = min(best, float(np.linalg.norm(difference, axis=-1).max()))
            shift = shift + difference.mean(axis=0)
    return best


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` independent trials, by Wilson's formula."""
    z = 1.959964
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + (z / count / 2) ** 2)
    return centre - half, centre + half

"""Bayesian flow on the circle in float64: entropies, accuracy schedule, beliefs, quantiles.

A belief about an angle is von Mises, vM(mean, concentration). An observation of accuracy alpha is
y ~ vM(x, alpha) of the true angle x; beliefs are multiplied with it and stay von Mises. After the
observations 1 … i the belief is `mean + i * concentration` in polar form of

    S_i = sum_{j <= i} alpha_j exp(i y_j) = exp(i x) R_i,   R_i = sum_{j <= i} alpha_j exp(i u_j),

with u_j ~ vM(0, alpha_j), which does not depend on x. Concentrations do not add up as the
precisions of normal distributions do, and may even fall.

All angles are in radians. Lattices and types follow the Bayesian flows of real numbers and classes.

Source: Wu et al. (2025), A Periodic Bayesian Flow for Material Generation, arXiv 2502.02016; Graves
et al. (2023), Bayesian Flow Networks, for lattices and types.
"""

import functools
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

Angles = NDArray[np.float64]

LARGEST_DEVIATION = 8.75
"""Quantiles are tabulated up to here: Philox' normal numbers stay below 8.7 deviations."""

_QUADRATURE_POINTS = 4001


def wrap(angle: ArrayLike) -> Angles:
    """Angles in [-pi, pi] that are the same direction."""
    angle = np.asarray(angle, dtype=np.float64)
    wrapped: Angles = angle - 2 * np.pi * np.round(angle / (2 * np.pi))
    return wrapped


def bessel_ratio(concentration: ArrayLike) -> Angles:
    """A(k) = I1(k) / I0(k) = E cos(u) for u ~ vM(0, k), in [0, 1)."""
    k = np.asarray(concentration, dtype=np.float64)
    ratio: Angles = special.i1e(k) / special.i0e(k)
    return ratio


def entropy(concentration: ArrayLike) -> Angles:
    """Differential entropy of vM(·, concentration), in nats; log(2 pi) at 0."""
    k = np.asarray(concentration, dtype=np.float64)
    # i0e(k) = exp(-k) I0(k): I0 itself overflows from k = 714.
    nats: Angles = math.log(2 * math.pi) + np.log(special.i0e(k)) + k - k * bessel_ratio(k)
    return nats


def divergence(accuracy: float, difference: ArrayLike) -> Angles:
    """KL divergence of vM(x, accuracy) from vM(x + difference, accuracy), in nats."""
    nats: Angles = accuracy * bessel_ratio(accuracy) * (1 - np.cos(difference))
    return nats


def updated_belief(
    mean: ArrayLike, concentration: ArrayLike, observation: ArrayLike, accuracy: ArrayLike
) -> tuple[Angles, Angles]:
    """The belief after one more observation: mean in [-pi, pi] and concentration >= 0.

    Args:
        mean, concentration: the belief before; any shapes that broadcast.
        observation: y, radians.
        accuracy: alpha >= 0 of the observation.
    """
    total = np.asarray(concentration) * np.exp(1j * np.asarray(mean))
    total = total + np.asarray(accuracy) * np.exp(1j * np.asarray(observation))
    return np.angle(total), np.abs(total)


def belief(observations: ArrayLike, accuracies: ArrayLike) -> tuple[Angles, Angles]:
    """The belief after all observations along the first dimension, in closed form.

    Args:
        observations: [steps, ...], radians.
        accuracies: [steps].
    Returns:
        mean [...], in [-pi, pi], and concentration [...].
    """
    total = np.tensordot(np.asarray(accuracies), np.exp(1j * np.asarray(observations)), axes=1)
    return np.angle(total), np.abs(total)


@functools.lru_cache(maxsize=64)
def concentration_targets(steps: int, last: float = 1000.0) -> tuple[float, ...]:
    """Concentrations beta_1 … beta_steps = `last` at which the entropy falls linearly."""
    start, end = float(entropy(0.0)), float(entropy(last))
    targets = []
    for step in range(1, steps):
        wanted = start + step / steps * (end - start)
        gap = functools.partial(_entropy_gap, wanted=wanted)
        targets.append(float(optimize.brentq(gap, 0.0, last, xtol=1e-13, rtol=1e-14)))
    return (*targets, last)


def _entropy_gap(concentration: float, wanted: float) -> float:
    return float(entropy(concentration)) - wanted


@functools.lru_cache(maxsize=64)
def accuracies(steps: int, last: float = 1000.0) -> tuple[float, ...]:
    """Accuracies alpha_1 … alpha_steps of the observations of a run.

    alpha_i takes a belief of concentration beta_{i-1} that is centred on the data to one of
    concentration beta_i in the mean. Real beliefs are not centred on the data, so their
    concentrations run about a tenth lower; networks are trained on that, it is no defect.

    Args:
        steps: of the run, and of the training: a schedule is one whole.
        last: beta_steps, > 0.
    Source: Wu et al. (2025), section 4.3; quadrature in place of their 100,000 samples.
    """
    targets = concentration_targets(steps, last)
    found = [targets[0]]
    for before, after in zip(targets[:-1], targets[1:], strict=True):
        gap = functools.partial(_concentration_gap, before=before, after=after)
        found.append(float(optimize.brentq(gap, after - before, last, xtol=1e-11, rtol=1e-13)))
    return tuple(found)


def _concentration_gap(accuracy: float, before: float, after: float) -> float:
    """Mean concentration after an observation of `accuracy`, less the wanted one."""
    return mean_concentration(before, accuracy) - after


def mean_concentration(concentration: float, accuracy: float) -> float:
    """E |concentration + accuracy exp(iu)| over u ~ vM(0, accuracy), by quadrature."""
    # The density is negligible outside of twelve deviations.
    end = math.pi if accuracy < 30 else min(math.pi, 12 / math.sqrt(accuracy))
    u = np.linspace(0.0, end, _QUADRATURE_POINTS)
    weight = np.exp(accuracy * (np.cos(u) - 1))
    # Trapezoidal rule; the end points count half.
    weight[[0, -1]] /= 2
    squares = accuracy**2 + concentration**2 + 2 * accuracy * concentration * np.cos(u)
    return float(weight @ np.sqrt(np.maximum(squares, 0.0)) / weight.sum())


def quantiles(accuracy: float, points: int) -> Angles:
    """Half of the odd function g with g(z) ~ vM(0, accuracy) for standard normal z.

    Args:
        accuracy: > 0.
        points: of the uniform grid of z from 0 to LARGEST_DEVIATION, >= 2.
    Returns:
        g on the grid, [points], radians, rising from 0 to at most pi.
    """
    # z is about 2 sqrt(accuracy) sin(u / 2): beyond the end the tail is below that of z = 10.
    sine = 10.0 / (2 * math.sqrt(accuracy))
    end = math.pi if sine >= 1 else 2 * math.asin(sine)
    u = np.linspace(0.0, end, 20001)
    if end == math.pi:
        # g flattens towards pi, where z has no bound: cells shrink geometrically there.
        near = math.pi - np.geomspace(u[1], 1e-15, 400)
        u = np.concatenate([u[:-2], near, [math.pi]])
    # Four Gauss-Legendre points per cell; summing from the end keeps the tail's relative accuracy.
    node, weight = np.polynomial.legendre.leggauss(4)
    half = np.diff(u)[:, None] / 2
    inside = u[:-1, None] + half * (1 + node)
    mass = (np.exp(accuracy * (np.cos(inside) - 1)) * half * weight).sum(axis=1)
    tail = np.cumsum(mass[::-1])[::-1]
    deviation = -special.ndtri(0.5 * tail / tail[0])
    grid = np.linspace(0.0, LARGEST_DEVIATION, points)
    return np.interp(grid, deviation, u[:-1])


def lattice_accuracy(time: ArrayLike, deviation: float) -> Angles:
    """gamma(t) = 1 - deviation^(2t): the belief's mean is N(gamma x, gamma (1 - gamma)).

    Args:
        time: in [0, 1].
        deviation: sigma_1 of the belief at time 1, in (0, 1).
    """
    gamma: Angles = 1 - deviation ** (2 * np.asarray(time, dtype=np.float64))
    return gamma


def lattice_belief(
    lattice: ArrayLike, noise: ArrayLike, time: ArrayLike, deviation: float
) -> Angles:
    """The mean of the belief about normalized lattice entries, given standard normal noise."""
    gamma = lattice_accuracy(time, deviation)
    scale = np.sqrt(gamma * (1 - gamma))
    mean: Angles = gamma * np.asarray(lattice) + scale * np.asarray(noise)
    return mean


def type_belief(
    probabilities: ArrayLike, noise: ArrayLike, time: ArrayLike, accuracy: float
) -> Angles:
    """The belief about atom types, probabilities over K classes.

    Args:
        probabilities: [..., K], one-hot data or a network's prediction.
        noise: [..., K], standard normal.
        time: in [0, 1]; 0 gives the uniform belief.
        accuracy: beta at time 1.
    """
    given = np.asarray(probabilities, dtype=np.float64)
    classes = given.shape[-1]
    beta = accuracy * np.asarray(time, dtype=np.float64) ** 2
    logits = beta * (classes * given - 1) + np.sqrt(beta * classes) * np.asarray(noise)
    return np.asarray(special.softmax(logits, axis=-1))

"""How far outputs are from a reference, and how sure the number is.

A number that does not exist (no signal to compare with, too few samples) raises `QualityError`: it
is "cannot decide", and must never pass for "good". All is computed in float64 with numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optimize.ir.errors import QualityError

Array = npt.NDArray[np.float64]

DEFAULT_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval; `low <= value <= high`, all finite."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def relative_error(candidate: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Norm of the difference divided by the norm of the reference, in [0, inf).

    Raises:
        QualityError: the reference is all zero, or an input is unusable (shape, NaN, empty).
    """
    ours, theirs = _comparable("relative_error", candidate, reference)
    size = _norm(theirs)
    if size == 0:
        raise QualityError(
            "relative_error: found a reference of all zeros, expected some signal; compare "
            "absolute differences instead."
        )
    return _norm(ours - theirs) / size


def sqnr_db(candidate: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Power of the reference over power of the difference, in dB; inf when the two are equal.

    Raises:
        QualityError: the reference is all zero, or an input is unusable (shape, NaN, empty).
    """
    error = relative_error(candidate, reference)
    return math.inf if error == 0 else -20 * math.log10(error)


def cosine(candidate: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Cosine of the angle between the two as flat vectors, in [-1, 1].

    Raises:
        QualityError: either is all zero, or an input is unusable (shape, NaN, empty).
    """
    ours, theirs = _comparable("cosine", candidate, reference)
    if not ours.any() or not theirs.any():
        raise QualityError(
            "cosine: found an array of all zeros, expected a direction on both sides; compare "
            "norms instead."
        )
    # Dividing by the largest entry first keeps squares of tiny or huge values representable.
    ours, theirs = ours / np.abs(ours).max(), theirs / np.abs(theirs).max()
    angle = float(np.vdot(ours, theirs)) / (_norm(ours) * _norm(theirs))
    return min(1.0, max(-1.0, angle))


def psnr(candidate: npt.ArrayLike, reference: npt.ArrayLike, peak: float | None = None) -> float:
    """Peak signal over root mean square difference, in dB; inf when the two are equal.

    Args:
        candidate: any shape.
        reference: the same shape.
        peak: width of the value range, above 0 (2 for images in [-1, 1]); by default that of the
            reference.
    Raises:
        QualityError: no `peak` is given and the reference is constant, or an input is unusable.
        ValueError: `peak` is not a positive finite number.
    """
    ours, theirs = _comparable("psnr", candidate, reference)
    if peak is None:
        peak = float(theirs.max() - theirs.min())
        if peak == 0:
            raise QualityError(
                "psnr: found a constant reference, expected a range of values; pass `peak`."
            )
    if not (math.isfinite(peak) and peak > 0):
        raise ValueError(f"psnr: found peak {peak}, expected a positive number; pass the range.")
    error = _norm(ours - theirs) / math.sqrt(theirs.size)
    return math.inf if error == 0 else 20 * math.log10(peak / error)


def trajectory_distance(
    candidate: npt.ArrayLike,
    reference: npt.ArrayLike,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> Interval:
    """Mean over samples of the root mean square distance to the same-seed fine-step solution.

    Args:
        candidate: [B, ...], final samples of a solver with few steps, at least two of them.
        reference: [B, ...], final samples from the same noise with many steps.
    Returns:
        The mean in the units of the samples, with a percentile bootstrap interval over samples.
    Raises:
        QualityError: fewer than two samples, or an input is unusable (shape, NaN, empty).
    """
    ours, theirs = _comparable("trajectory_distance", candidate, reference)
    if ours.ndim < 2 or len(ours) < 2:
        raise QualityError(
            f"trajectory_distance: found shape {list(ours.shape)}, expected at least two samples "
            "[B, ...]; draw more."
        )
    gap = (ours - theirs).reshape(len(ours), -1)
    distances = np.sqrt(np.square(gap).mean(axis=1))
    return bootstrap_interval(
        distances, lambda chosen: float(chosen.mean()), resamples, seed, confidence
    )


def bootstrap_interval(
    samples: Array,
    statistic: Callable[[Array], float],
    resamples: int,
    seed: int,
    confidence: float = DEFAULT_CONFIDENCE,
    remove_excess: bool = False,
) -> Interval:
    """Percentile bootstrap of a statistic over the first axis; identical samples give zero width.

    Args:
        samples: [B, ...], at least two.
        statistic: maps [B, ...] to a number.
        resamples: resamples drawn, at least 2; 200 give a rough interval, 1000 a steady one.
        seed: of the resampling.
        confidence: share of resamples inside, in (0, 1).
        remove_excess: subtract the mean excess of resampled statistics over the statistic.
    Raises:
        QualityError: fewer than two samples, or the statistic is not finite.
        ValueError: `resamples` or `confidence` is out of range.
    """
    if resamples < 2 or not 0 < confidence < 1:
        raise ValueError(
            f"bootstrap_interval: found resamples {resamples} and confidence {confidence}, "
            "expected at least 2 and a number in (0, 1); correct them."
        )
    if len(samples) < 2:
        raise QualityError(
            f"bootstrap_interval: found {len(samples)} samples, expected at least two; draw more."
        )
    value = statistic(samples)
    generator = np.random.default_rng(seed)
    picks = generator.integers(len(samples), size=(resamples, len(samples)))
    resampled = np.array([statistic(samples[pick]) for pick in picks])
    if not (math.isfinite(value) and np.isfinite(resampled).all()):
        raise QualityError(
            "bootstrap_interval: found a statistic that is not finite, expected numbers; look for "
            "NaN or overflow in the samples."
        )
    if remove_excess:
        resampled = np.clip(resampled - (resampled.mean() - value), 0, None)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(value, min(value, float(low)), max(value, float(high)))


def _comparable(
    metric: str, candidate: npt.ArrayLike, reference: npt.ArrayLike
) -> tuple[Array, Array]:
    ours, theirs = np.asarray(candidate, np.float64), np.asarray(reference, np.float64)
    if ours.shape != theirs.shape:
        raise QualityError(
            f"{metric}: found shapes {list(ours.shape)} and {list(theirs.shape)}, expected equal "
            "shapes; compare outputs of the same request."
        )
    if ours.size == 0:
        raise QualityError(f"{metric}: found empty arrays, expected values; draw some samples.")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise QualityError(
            f"{metric}: found NaN or infinity, expected finite values; look for overflow upstream."
        )
    return ours, theirs


def _norm(values: Array) -> float:
    largest = float(np.abs(values).max())
    if largest == 0:
        return 0.0
    return largest * float(np.linalg.norm((values / largest).ravel()))

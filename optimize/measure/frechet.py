"""How far one set of samples is from another as a distribution: the Frechet distance.

Features are rows of numbers; `PrincipalComponents` makes them for data without a feature network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optimize.ir.errors import QualityError
from optimize.measure.quality import DEFAULT_CONFIDENCE, Array, Interval, bootstrap_interval


def frechet_distance(features_a: npt.ArrayLike, features_b: npt.ArrayLike) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of feature rows, in [0, inf).

    Args:
        features_a: [B, C], at least two rows; more than C are needed for a useful number.
        features_b: [any B, C], at least two rows.
    Raises:
        QualityError: fewer than two rows, different C, or values that are not finite.
    Source: Heusel et al. (2017), equation 6; Dowson and Landau (1982).
    """
    a, b = _rows("frechet_distance", features_a), _rows("frechet_distance", features_b)
    if a.shape[1] != b.shape[1]:
        raise QualityError(
            f"frechet_distance: found {a.shape[1]} and {b.shape[1]} features, expected equal "
            "counts; extract both with the same features."
        )
    covariance_a, covariance_b = _covariance(a), _covariance(b)
    root_a = _symmetric_root(covariance_a)
    # trace((A B)^1/2) = trace((A^1/2 B A^1/2)^1/2), and that one is symmetric.
    inner = np.linalg.eigvalsh(root_a @ covariance_b @ root_a)
    cross = float(np.sqrt(np.clip(inner, 0, None)).sum())
    offset = a.mean(axis=0) - b.mean(axis=0)
    spread = float(np.trace(covariance_a) + np.trace(covariance_b)) - 2 * cross
    return max(0.0, float(offset @ offset) + spread)


def frechet_with_interval(
    features: npt.ArrayLike,
    reference: npt.ArrayLike,
    resamples: int = 200,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> Interval:
    """Frechet distance with a percentile bootstrap interval over `features`.

    The reference stays fixed. A resample repeats rows, so its distance lies above that of the
    sample; the mean of this excess is subtracted from the resampled distances before their
    percentiles are taken. The distance itself also lies above that of endless samples and is not
    corrected: compare it only with distances of the same number of rows.

    Args:
        features: [B, C], at least two rows.
        reference: [any B, C], at least two rows.
        resamples: bootstrap resamples, at least 2.
        seed: of the resampling.
        confidence: share of resamples inside the interval, in (0, 1).

    Raises:
        QualityError: as `frechet_distance`.
        ValueError: fewer than two resamples, or a confidence outside (0, 1).
    """
    rows, fixed = _rows("frechet_with_interval", features), np.asarray(reference, np.float64)

    def distance(chosen: Array) -> float:
        return frechet_distance(chosen, fixed)

    return bootstrap_interval(rows, distance, resamples, seed, confidence, remove_excess=True)


@dataclass(frozen=True)
class PrincipalComponents:
    """A linear map to the directions of largest variance of a training set.

    Attributes:
        mean: [C], float64.
        directions: [components, C], float64, orthonormal rows, variance falling.
    """

    mean: Array
    directions: Array

    @classmethod
    def fit(cls, rows: npt.ArrayLike, components: int = 20) -> PrincipalComponents:
        """Fits to feature rows [B, C].

        Raises:
            QualityError: `components` is outside [1, min(B - 1, C)], or rows are not finite.
        """
        training = _rows("PrincipalComponents.fit", rows)
        limit = min(len(training) - 1, training.shape[1])
        if not 1 <= components <= limit:
            raise QualityError(
                f"PrincipalComponents.fit: found {components} components for rows "
                f"{list(training.shape)}, expected 1 to {limit}; give more rows or ask for fewer."
            )
        mean = training.mean(axis=0)
        directions = np.linalg.svd(training - mean, full_matrices=False)[2][:components]
        return cls(mean, directions)

    def transform(self, rows: npt.ArrayLike) -> Array:
        """Coordinates [B, components] of feature rows [B, C]."""
        projected: Array = (_rows("PrincipalComponents", rows, 1) - self.mean) @ self.directions.T
        return projected


def _rows(metric: str, features: npt.ArrayLike, least: int = 2) -> Array:
    rows = np.asarray(features, np.float64)
    if rows.ndim != 2 or len(rows) < least or rows.shape[1] == 0:
        raise QualityError(
            f"{metric}: found features of shape {list(rows.shape)}, expected [B, C] with B at "
            f"least {least}; draw more samples or flatten each to one row."
        )
    if not np.isfinite(rows).all():
        raise QualityError(
            f"{metric}: found NaN or infinity, expected finite values; look for overflow upstream."
        )
    return rows


def _covariance(rows: Array) -> Array:
    centred = rows - rows.mean(axis=0)
    covariance: Array = centred.T @ centred / (len(rows) - 1)
    return covariance


def _symmetric_root(matrix: Array) -> Array:
    eigenvalues, eigenvectors = np.linalg.eigh(matrix)
    root: Array = (eigenvectors * np.sqrt(np.clip(eigenvalues, 0, None))) @ eigenvectors.T
    return root

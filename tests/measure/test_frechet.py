"""The Frechet distance against closed forms, its interval, and its features."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.linalg import sqrtm  # type: ignore[import-untyped]

from optimize.ir.errors import QualityError
from optimize.measure.frechet import (
    PrincipalComponents,
    frechet_distance,
    frechet_with_interval,
)

Array = npt.NDArray[np.float64]


def rows_with_moments(mean: Array, covariance: Array, count: int, seed: int) -> Array:
    """Rows whose sample mean and sample covariance are exactly the given ones."""
    raw = np.random.default_rng(seed).normal(size=(count, len(mean)))
    raw -= raw.mean(axis=0)
    whitener = np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False)))
    rows: Array = raw @ whitener.T @ np.linalg.cholesky(covariance).T + mean
    return rows


def random_covariance(size: int, seed: int) -> Array:
    factor = np.random.default_rng(seed).normal(size=(size, 2 * size))
    covariance: Array = factor @ factor.T / size
    return covariance


def test_equals_the_sum_of_squares_when_covariances_commute() -> None:
    mean_a, mean_b = np.array([0.0, 1.0, 2.0]), np.array([0.5, 1.0, 0.0])
    deviation_a, deviation_b = np.array([1.0, 2.0, 0.1]), np.array([3.0, 2.0, 0.4])
    expected = np.square(mean_a - mean_b).sum() + np.square(deviation_a - deviation_b).sum()
    a = rows_with_moments(mean_a, np.diag(deviation_a**2), 40, seed=0)
    b = rows_with_moments(mean_b, np.diag(deviation_b**2), 55, seed=1)
    assert frechet_distance(a, b) == pytest.approx(expected)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(expected)


def test_equals_the_matrix_formula_when_covariances_do_not_commute() -> None:
    covariance_a, covariance_b = random_covariance(6, 0), random_covariance(6, 1)
    offset = np.arange(6.0)
    root = np.real(sqrtm(covariance_a @ covariance_b))
    expected = offset @ offset + np.trace(covariance_a + covariance_b - 2 * root)
    a = rows_with_moments(np.zeros(6), covariance_a, 50, seed=2)
    b = rows_with_moments(offset, covariance_b, 70, seed=3)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_is_zero_for_the_same_rows_in_another_order() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 5))
    assert frechet_distance(rows, rows[::-1]) == pytest.approx(0.0, abs=1e-9)


def test_survives_a_covariance_without_full_rank() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 10))
    assert frechet_distance(rows, rows + 1.0) == pytest.approx(10.0, abs=1e-6)


def test_interval_brackets_the_distance_and_shrinks_with_more_rows() -> None:
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(2000, 4))
    rows = generator.normal(loc=1.0, size=(1600, 4))
    wide = frechet_with_interval(rows[:100], reference)
    narrow = frechet_with_interval(rows, reference)
    for interval in (wide, narrow):
        assert interval.low < interval.value < interval.high
    assert (narrow.high - narrow.low) < 0.5 * (wide.high - wide.low)
    assert narrow.low < 4.0 < narrow.high


def test_interval_is_finite_with_zero_variance() -> None:
    reference = np.random.default_rng(0).normal(size=(50, 3))
    interval = frechet_with_interval(np.zeros((20, 3)), reference)
    assert math.isfinite(interval.value)
    assert interval.high - interval.low < 1e-9 * interval.value


@pytest.mark.parametrize(
    ("a", "b", "found"),
    [
        (np.ones((1, 3)), np.ones((5, 3)), r"shape \[1, 3\]"),
        (np.ones((5, 3)), np.ones((5, 4)), "3 and 4 features"),
        (np.ones(5), np.ones((5, 3)), r"shape \[5\]"),
        (np.full((5, 3), np.nan), np.ones((5, 3)), "NaN"),
    ],
    ids=["one-row", "features", "flat", "nan"],
)
def test_cannot_decide_when_undefined(a: Array, b: Array, found: str) -> None:
    with pytest.raises(QualityError, match=found):
        frechet_distance(a, b)


def test_principal_components_find_the_plane_that_data_lie_in() -> None:
    generator = np.random.default_rng(0)
    plane = np.linalg.qr(generator.normal(size=(8, 2)))[0].T
    rows = generator.normal(size=(100, 2)) * [3.0, 1.0] @ plane + 5.0
    components = PrincipalComponents.fit(rows, components=2)
    coordinates = components.transform(rows)
    assert np.allclose(coordinates @ components.directions + components.mean, rows)
    assert coordinates[:, 0].var() > coordinates[:, 1].var()
    assert np.allclose(components.directions @ components.directions.T, np.eye(2))


def test_principal_components_reject_more_directions_than_the_data_have() -> None:
    with pytest.raises(QualityError, match="expected 1 to 4"):
        PrincipalComponents.fit(np.eye(5, 9), components=5)

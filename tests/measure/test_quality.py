"""Metrics of single outputs: known values, undefined cases, intervals."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from optimize.ir.errors import QualityError
from optimize.measure.quality import (
    Array,
    Interval,
    bootstrap_interval,
    cosine,
    psnr,
    relative_error,
    sqnr_db,
    trajectory_distance,
)

SIGNAL = np.array([3.0, -4.0, 0.0, 12.0])
METRICS = [relative_error, sqnr_db, cosine, psnr]


def test_relative_error_is_the_ratio_of_norms() -> None:
    assert relative_error(SIGNAL + [0, 0, 1.3, 0], SIGNAL) == pytest.approx(0.1)


def test_sqnr_is_twenty_db_when_the_error_is_a_tenth() -> None:
    assert sqnr_db(SIGNAL * 1.1, SIGNAL) == pytest.approx(20.0)


def test_psnr_uses_the_given_peak_or_the_range_of_the_reference() -> None:
    candidate = SIGNAL + 0.16
    assert psnr(candidate, SIGNAL) == pytest.approx(40.0)
    assert psnr(candidate, SIGNAL, peak=1.6) == pytest.approx(20.0)


def test_ratios_in_db_are_infinite_when_outputs_are_equal() -> None:
    assert sqnr_db(SIGNAL, SIGNAL) == math.inf
    assert psnr(SIGNAL, SIGNAL) == math.inf


def test_cosine_sees_direction_only() -> None:
    assert cosine(SIGNAL * 7, SIGNAL) == pytest.approx(1.0)
    assert cosine(-SIGNAL, SIGNAL) == pytest.approx(-1.0)
    assert cosine([1, 0, 0, 0], [0, 2, 0, 0]) == 0.0


@pytest.mark.parametrize("scale", [1e-200, 1e200], ids=["tiny", "huge"])
def test_ratios_neither_underflow_nor_overflow(scale: float) -> None:
    assert relative_error(SIGNAL * 1.1 * scale, SIGNAL * scale) == pytest.approx(0.1)
    assert cosine(SIGNAL * scale, SIGNAL * scale) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)
@pytest.mark.parametrize(
    ("candidate", "reference", "found"),
    [
        (np.zeros(3), np.zeros(3), "zeros|constant"),
        (SIGNAL, np.zeros(4), "zeros|constant"),
        (SIGNAL, SIGNAL[:3], r"shapes \[4\] and \[3\]"),
        (np.empty(0), np.empty(0), "empty"),
        (SIGNAL * np.nan, SIGNAL, "NaN"),
        (SIGNAL, np.full(4, np.inf), "NaN"),
    ],
    ids=["all-zero", "zero-reference", "shapes", "empty", "nan", "infinite"],
)
def test_cannot_decide_when_undefined(
    metric: Callable[[Array, Array], float], candidate: Array, reference: Array, found: str
) -> None:
    with pytest.raises(QualityError, match=found):
        metric(candidate, reference)


def test_psnr_of_a_constant_reference_needs_a_peak() -> None:
    flat = np.full(4, 0.5)
    with pytest.raises(QualityError, match="pass `peak`"):
        psnr(flat, flat)
    assert psnr(flat + 0.1, flat, peak=1.0) == pytest.approx(20.0)


@pytest.mark.parametrize("peak", [0.0, -1.0, math.inf, math.nan])
def test_psnr_rejects_a_peak_that_is_no_range(peak: float) -> None:
    with pytest.raises(ValueError, match="peak"):
        psnr(SIGNAL, SIGNAL + 1, peak=peak)


def test_trajectory_distance_is_the_mean_of_per_sample_distances() -> None:
    reference = np.zeros((2, 3, 5))
    candidate = reference + np.array([1.0, 3.0])[:, None, None]
    result = trajectory_distance(candidate, reference)
    assert result.value == pytest.approx(2.0)
    assert (result.low, result.high) == pytest.approx((1.0, 3.0))


@pytest.mark.parametrize("shape", [(1, 8), (8,)], ids=["one-sample", "no-sample-axis"])
def test_trajectory_distance_cannot_decide_from_one_sample(shape: tuple[int, ...]) -> None:
    with pytest.raises(QualityError, match="at least two samples"):
        trajectory_distance(np.ones(shape), np.zeros(shape))


def test_bootstrap_interval_has_zero_width_for_identical_samples() -> None:
    result = bootstrap_interval(np.full(9, 2.5), lambda rows: float(rows.mean()), 100, seed=0)
    assert result == Interval(2.5, 2.5, 2.5)


def test_bootstrap_interval_of_a_mean_matches_its_standard_error() -> None:
    samples = np.random.default_rng(3).normal(5.0, 2.0, 400)
    result = bootstrap_interval(samples, lambda rows: float(rows.mean()), 2000, seed=0)
    half_width = 1.96 * samples.std(ddof=1) / math.sqrt(len(samples))
    assert result.value == samples.mean()
    assert result.high - result.value == pytest.approx(half_width, rel=0.12)
    assert result.value - result.low == pytest.approx(half_width, rel=0.12)


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        samples = generator.normal(0.0, 1.0, 50)
        result = bootstrap_interval(samples, lambda rows: float(rows.mean()), 200, seed, 0.9)
        covered += result.low <= 0.0 <= result.high
    assert 0.82 <= covered / 200 <= 0.96


def test_bootstrap_interval_repeats_for_the_same_seed_only() -> None:
    samples = np.random.default_rng(1).normal(size=30)

    def interval(seed: int) -> Interval:
        return bootstrap_interval(samples, lambda rows: float(rows.mean()), 50, seed)

    assert interval(4) == interval(4)
    assert interval(4) != interval(5)


def test_bootstrap_interval_cannot_decide_when_a_statistic_is_not_finite() -> None:
    with pytest.raises(QualityError, match="not finite"):
        bootstrap_interval(np.arange(5.0), lambda rows: math.nan, 10, seed=0)
    with pytest.raises(QualityError, match="at least two"):
        bootstrap_interval(np.arange(1.0), lambda rows: 0.0, 10, seed=0)


@pytest.mark.parametrize(("resamples", "confidence"), [(1, 0.95), (10, 1.0), (10, 0.0)])
def test_bootstrap_interval_rejects_options_out_of_range(resamples: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_interval(np.arange(5.0), lambda rows: 0.0, resamples, 0, confidence)


def test_measuring_quality_imports_neither_torch_nor_scikit_learn() -> None:
    code = (
        "import sys, optimize.measure.quality, optimize.measure.frechet;"
        "sys.exit(bool({'torch', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

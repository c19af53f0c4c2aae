"""How near results are to those of a reference, with 95 % intervals over samples.

The metrics are those of a recipe's budget. An interval is a percentile bootstrap: samples are drawn
with replacement from those there are, so it says how the number would vary with other samples like
these, not with other kinds of request.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.ir.errors import QualityError
from optimize.measure.quality import bootstrap_interval

Results = Sequence[Mapping[str, NDArray[Any]]]
"""What was returned for each request."""

Statistic = Callable[[NDArray[np.float64]], float]

RESAMPLES = 2000

CALLS = "calls"
"""The result of whole numbers that says what an answer took; it is no part of the answer."""


def answer_names(result: Mapping[str, NDArray[Any]]) -> list[str]:
    """The results that are compared: all but the number of calls beside an answer."""
    names = [name for name, item in result.items() if name != CALLS or item.dtype.kind not in "iu"]
    return names or list(result)


_REQUEST, _ERROR, _SIGNAL, _COUNT, _PEAK = range(5)
"""Columns of a unit and output: request; sums of squares of difference and reference (or, of whole
numbers, how many differ); how many numbers; range of the reference of the whole request."""


def result_quality(found: Results, expected: Results) -> tuple[dict[str, Any], str | None]:
    """Metric → {"value", "interval"}, and a sentence where an interval is missing.

    How many calls an answer took is not compared. The units of the bootstrap are samples where
    every result has a batch of them, else requests.

    Args:
        found: of the program in question.
        expected: of the reference, for the same requests.
    Returns:
        "relative_error", "psnr" where some float differs, "token_match" where there are whole
        numbers; an interval is [low, high], or None.
    Raises:
        QualityError: the reference is all zero and the results are not.
    """
    names = answer_names(expected[0])
    expected = [{name: result[name] for name in names} for result in expected]
    units = _units(found, expected)
    kinds = [array.dtype.kind for array in expected[0].values()]
    floats = [place for place, kind in enumerate(kinds) if kind == "f"]
    tokens = [place for place, kind in enumerate(kinds) if kind in "iu"]
    others = [place for place, kind in enumerate(kinds) if kind != "f"]

    def relative_error(rows: NDArray[np.float64]) -> float:
        parts = [_norm_ratio(rows[:, place]) for place in floats]
        return max([*parts, *(_differing(rows[:, place]) for place in others)], default=0.0)

    def noise(rows: NDArray[np.float64]) -> float:
        return max((_noise_to_peak(rows[:, place]) for place in floats), default=0.0)

    def token_match(rows: NDArray[np.float64]) -> float:
        return 1.0 - max(_differing(rows[:, place]) for place in tokens)

    if not math.isfinite(relative_error(units)):
        raise QualityError(
            "quality: found a reference of all zeros, expected some signal; calibrate on another "
            "request"
        )
    metrics = {"relative_error": _with_interval(units, relative_error)}
    share = noise(units)
    if 0 < share < math.inf:
        ratio = _with_interval(units, noise)
        metrics["psnr"] = {
            "value": _decibels(share),
            "interval": _turned(ratio["interval"]),
        }
    if tokens:
        metrics["token_match"] = _with_interval(units, token_match)
    missing = sorted(name for name, item in metrics.items() if item["interval"] is None)
    return metrics, _why_missing(missing, len(units))


def _units(found: Results, expected: Results) -> NDArray[np.float64]:
    """[units, outputs, columns]."""
    split = all(
        len({len(item) if item.ndim else 0 for item in (*ours.values(), *theirs.values())}) == 1
        and all(item.ndim and len(item) for item in theirs.values())
        for ours, theirs in zip(found, expected, strict=True)
    )
    units = []
    for request, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        count = len(next(iter(theirs.values()))) if split else 1
        for sample in range(count):
            chosen = slice(sample, sample + 1) if split else ...
            units.append(
                [
                    [
                        request,
                        *_sums(ours[name][chosen], theirs[name][chosen]),
                        _range(theirs[name]),
                    ]
                    for name in theirs
                ]
            )
    return np.asarray(units, np.float64)


def _sums(ours: NDArray[Any], theirs: NDArray[Any]) -> tuple[float, float, int]:
    if theirs.dtype.kind == "f":
        one, other = ours.astype(np.float64), theirs.astype(np.float64)
        gap = (one - other).ravel()
        return float(gap @ gap), float(other.ravel() @ other.ravel()), theirs.size
    size = max(ours.size, theirs.size)
    if ours.ndim > 1 and ours.shape != theirs.shape:
        # Answers end at different steps; where one has ended they differ.
        common = min(ours.shape[1], theirs.shape[1])
        ours, theirs = ours[:, :common], theirs[:, :common]
    return float(size - (ours == theirs).sum()), 0.0, size


def _range(array: NDArray[Any]) -> float:
    return float(array.max()) - float(array.min()) if array.dtype.kind == "f" and array.size else 0


def _norm_ratio(rows: NDArray[np.float64]) -> float:
    error, signal = rows[:, _ERROR].sum(), rows[:, _SIGNAL].sum()
    if error == 0:
        return 0.0
    return math.sqrt(error / signal) if signal else math.inf


def _differing(rows: NDArray[np.float64]) -> float:
    return float(rows[:, _ERROR].sum() / max(1.0, rows[:, _COUNT].sum()))


def _noise_to_peak(rows: NDArray[np.float64]) -> float:
    """Root mean square difference over the range of the reference, in the worst request."""
    worst = 0.0
    for request in np.unique(rows[:, _REQUEST]):
        own = rows[rows[:, _REQUEST] == request]
        error = math.sqrt(own[:, _ERROR].sum() / max(1.0, own[:, _COUNT].sum()))
        if error:
            worst = max(worst, error / own[0, _PEAK] if own[0, _PEAK] else math.inf)
    return worst


def _with_interval(units: NDArray[np.float64], statistic: Statistic) -> dict[str, Any]:
    interval = None
    if len(units) > 1:
        try:
            found = bootstrap_interval(units, statistic, RESAMPLES, seed=0)
            interval = [found.low, found.high]
        except QualityError:
            interval = None
    return {"value": statistic(units), "interval": interval}


def _decibels(share: float) -> float:
    return -20 * math.log10(share)


def _turned(interval: list[float] | None) -> list[float] | None:
    """An interval of noise over peak as one of the psnr; None where it reaches no noise at all."""
    if interval is None or interval[0] <= 0:
        return None
    return [_decibels(interval[1]), _decibels(interval[0])]


def _why_missing(metrics: Sequence[str], units: int) -> str | None:
    if not metrics:
        return None
    if units < 2:
        return (
            f"no interval of {', '.join(metrics)}: found one sample, an interval needs two; "
            "give `calibration: {samples: 8}` in the recipe"
        )
    return f"no interval of {', '.join(metrics)}: it is not finite in some draw of the samples"

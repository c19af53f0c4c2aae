"""Seconds of two sides that take turns, and the ratio of the two with its interval.

A request of each side is cut into slices between the steps of its loop, and the sides run slices in
turns: a machine that slows down slows both. What a disturbance adds to one slice alone is an
outlier of that slice, and a median over requests leaves it out.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from optimize.gate.sides import Side
from optimize.ir.errors import QualityError
from optimize.measure.quality import Interval

Array = NDArray[np.float64]
TimeMetric = Literal["cpu_time", "wall_time"]
TIME_METRICS: tuple[TimeMetric, ...] = ("cpu_time", "wall_time")

LEAST_SLICE = 0.003
"""Seconds below which a slice is more a change of sides, with cold caches, than work."""
MOST_SLICES = 64
RESAMPLES = 999

Pair = tuple[Side, Side]
"""The candidate and the baseline."""


@dataclass
class Samples:
    """What was measured.

    Attributes:
        slices: into which every request is cut; 0 while that is not known.
        seconds: metric → float64 [requests, slices, 2], candidate first.
        peak_memory: bytes of (candidate, baseline) at most, one pair per pair of processes.
    """

    slices: int = 0
    seconds: dict[TimeMetric, list[list[tuple[float, float]]]] = field(
        default_factory=lambda: {metric: [] for metric in TIME_METRICS}
    )
    peak_memory: list[tuple[int, int]] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return len(self.seconds["wall_time"])

    def array(self, metric: TimeMetric) -> Array:
        """Seconds [requests, slices, 2]."""
        return np.asarray(self.seconds[metric], np.float64)

    def raw(self) -> dict[str, dict[str, list[float]]]:
        """Metric → side → seconds of each request."""
        if not self.requests:
            return {}
        return {
            metric: {
                side: self.array(metric)[..., place].sum(axis=1).tolist()
                for place, side in enumerate(("candidate", "baseline"))
            }
            for metric in TIME_METRICS
        }

    def extended(self, other: "Samples") -> "Samples":
        """These and others of the same two sides."""
        both = {name: [*self.seconds[name], *other.seconds[name]] for name in TIME_METRICS}
        return Samples(self.slices, both, [*self.peak_memory, *other.peak_memory])


@contextmanager
def opened(make: Callable[[], Pair]) -> Iterator[Pair]:
    """A pair of sides, closed at the end whatever happens."""
    with ExitStack() as stack:
        pair = make()
        for side in pair:
            stack.enter_context(closing(side))
        yield pair


def slices_of(pair: Pair) -> int:
    """How many slices a request is cut into: as many as both can, none too short for the clock."""
    shortest = min(side.seconds for side in pair)
    return max(1, min(*(side.steps for side in pair), MOST_SLICES, int(shortest / LEAST_SLICE)))


def add_request(samples: Samples, pair: Pair) -> None:
    """Runs one request of each side, slice by slice in turns, and appends what it took."""
    first, slices = samples.requests % 2, samples.slices
    rows: dict[TimeMetric, list[tuple[float, float]]] = {metric: [] for metric in TIME_METRICS}
    for position in range(slices):
        order = (0, 1) if (position + first) % 2 == 0 else (1, 0)
        spent: dict[int, tuple[float, float]] = {side: pair[side].run(slices) for side in order}
        for index, metric in enumerate(TIME_METRICS):
            rows[metric].append((spent[0][index], spent[1][index]))
    for metric, row in rows.items():
        samples.seconds[metric].append(row)


def ratio(seconds: Array, confidence: float, seed: int = 0) -> Interval:
    """Seconds of the candidate divided by those of the baseline, with a bootstrap interval.

    The ratio of a slice is the exponential of the median over requests of the difference of the
    logarithms; slices are weighted by what they take in the baseline.

    Args:
        seconds: [requests, slices, 2], candidate first.
        confidence: share of resamples inside, in (0, 1).
        seed: of the resampling of requests.
    Raises:
        QualityError: fewer than two requests, or a time that is not positive and finite.
    """
    from scipy.stats import bootstrap

    if len(seconds) < 2:
        raise QualityError(f"ratio: found {len(seconds)} requests, expected at least two; run more")
    if not (np.isfinite(seconds).all() and (seconds > 0).all()):
        raise QualityError(
            "ratio: found a time that is not positive and finite, expected seconds; the clock is "
            "too coarse for so short a request, time a longer one"
        )
    weights = np.median(seconds[..., 1], axis=0)
    weights /= weights.sum()
    shifts = np.log(seconds[..., 0] / seconds[..., 1])

    def statistic(picked: Any, axis: int = -1) -> Array:
        chosen = shifts[np.moveaxis(np.asarray(picked, np.int64), axis, -1)]
        ratios: Array = np.exp(np.median(chosen, axis=-2)) @ weights
        return ratios

    requests = np.arange(len(seconds))
    value = float(statistic(requests))
    # The default method, BCa, is NaN where samples are alike.
    result = bootstrap(
        (requests,),
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        batch=100,
        rng=np.random.default_rng(seed),
    )
    low, high = (float(end) for end in result.confidence_interval)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise QualityError("ratio: found an interval that is not finite, expected numbers")
    return Interval(value, min(value, low), max(value, high))

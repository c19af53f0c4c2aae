"""Times functions against one another, interleaved, so that a noisy machine disturbs all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from optimize.measure.quality import Interval, bootstrap_interval

Run = Callable[[], object]


def interleaved_seconds(
    runs: Mapping[str, Run],
    repeats: int,
    warmup: int = 1,
    progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each run, `repeats` times, in rounds whose order alternates.

    Args:
        runs: name → function; its result is dropped.
        repeats: measured rounds, >= 1.
        warmup: rounds before them that are not measured, >= 0.
        progress: called after each round with (rounds done, rounds in all).
        clock: seconds; `time.thread_time` leaves out what other processes take, where all runs
            stay on the calling thread.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_index in range(warmup + repeats):
        for name in names if round_index % 2 == 0 else reversed(names):
            start = clock()
            runs[name]()
            elapsed = clock() - start
            if round_index >= warmup:
                seconds[name].append(elapsed)
        if progress is not None:
            progress(round_index + 1, warmup + repeats)
    return seconds


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two timed runs.

    Attributes:
        seconds: median of the run in question.
        baseline_seconds: median of the baseline.
        speedup: baseline seconds divided by ours: median over pairs, with its interval.
    """

    seconds: float
    baseline_seconds: float
    speedup: Interval

    @property
    def verdict(self) -> str:
        """Whether ours is "faster" or "slower"; "inconclusive" when the interval holds 1."""
        if self.speedup.low > 1:
            return "faster"
        return "slower" if self.speedup.high < 1 else "inconclusive"


def compare(seconds: list[float], baseline: list[float], seed: int = 0) -> Comparison:
    """Compares two lists of seconds measured in the same rounds.

    Raises:
        QualityError: fewer than two pairs.
    """
    ratios = np.asarray(baseline, np.float64) / np.asarray(seconds, np.float64)
    interval = bootstrap_interval(ratios, lambda chosen: float(np.median(chosen)), 2000, seed)
    return Comparison(statistics.median(seconds), statistics.median(baseline), interval)

"""Solvers compared on one model: how close each comes to the exact solution, by denoiser calls.

Only the numbers and what follows from them; `optimize solvers` measures them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from optimize.measure.quality import Interval

Metric = Literal["distance", "psnr", "frechet"]
"""Of a score: two against the exact solution from the same noise, one of the samples as a set."""

METRIC_NAMES: dict[Metric, str] = {
    "distance": "distance to the exact solution",
    "psnr": "PSNR against the exact solution, dB",
    "frechet": "Fréchet distance to real samples",
}


def metric_text(metric: Metric, value: float) -> str:
    """A number of a metric for a table: three digits, or dB with one behind the point."""
    return f"{value:.1f}" if metric == "psnr" else f"{value:#.3g}".rstrip(".")


@dataclass(frozen=True)
class Score:
    """The samples of one run.

    Attributes:
        distance: mean over samples of the RMS distance to the exact solution, in units of the
            samples; None with fresh noise, which leaves the exact solution's path.
        psnr: of all samples against the exact solution, in dB; None with fresh noise.
        frechet: distance of the samples to real ones as sets; None without a judge.
    """

    distance: Interval | None = None
    psnr: float | None = None
    frechet: Interval | None = None

    def value(self, metric: Metric) -> float | None:
        """The number of a metric, without its interval."""
        found = getattr(self, metric)
        return found.value if isinstance(found, Interval) else found


@dataclass(frozen=True)
class SolverLine:
    """A solver at every number of calls.

    Attributes:
        name: of the solver, with what sets it apart from other lines of it.
        options: of `fuse_solver`, those that are not at their default and not the steps.
        scores: calls → score.
        declined: calls → why there is no score.
    """

    name: str
    options: Mapping[str, Any]
    scores: Mapping[int, Score]
    declined: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SolverComparison:
    """What `optimize solvers` finds.

    Attributes:
        model: as the user named it.
        samples: per run, from the same noise and conditioning in every run.
        seed: of the noise.
        schedule: how all runs space their noise levels; "same" as the captured program.
        calls: the columns, rising.
        reference: name of the run that stands for the exact solution.
        reference_error: distance of the reference to itself with half its calls, which bounds its
            own error from above: even at first order it has halved since.
        captured: name of the captured program's own run.
        captured_score: its score.
        lines: one per solver and order.
        left_out: solver → why it has no line.
        recipes: calls → recipe of the best line, as YAML.
        notes: what a reader should know besides.
        environment: versions and machine.
    """

    model: str
    samples: int
    seed: int
    schedule: str
    calls: tuple[int, ...]
    reference: str
    reference_error: Interval
    captured: str
    captured_score: Score
    lines: tuple[SolverLine, ...]
    left_out: Mapping[str, str]
    recipes: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Those that some line has."""
        scores = [score for line in self.lines for score in line.scores.values()]
        known: tuple[Metric, ...] = get_args(Metric)
        return tuple(
            metric for metric in known if any(score.value(metric) is not None for score in scores)
        )

    def best(self, calls: int, metric: Metric = "distance") -> SolverLine | None:
        """The line with the best score at a number of calls; the first of equal ones."""
        found = [
            (value, line)
            for line in self.lines
            if calls in line.scores and (value := line.scores[calls].value(metric)) is not None
        ]
        if not found:
            return None
        choose = max if metric == "psnr" else min
        return choose(found, key=lambda item: item[0])[1]

    def clearly_best(self, calls: int, metric: Metric) -> SolverLine | None:
        """The best line, unless its interval holds every other of the column."""
        best = self.best(calls, metric)
        if best is None:
            return None
        interval = getattr(best.scores[calls], metric)
        if not isinstance(interval, Interval):
            return best
        others = [
            value
            for line in self.lines
            if line is not best
            and calls in line.scores
            and (value := line.scores[calls].value(metric)) is not None
        ]
        return None if others and max(others) <= interval.high else best

    def calls_to_captured(self) -> dict[str, int]:
        """Line → fewest of the measured calls that come as close as the captured program."""
        limit = self.captured_score.value("distance")
        reached = {}
        for line in self.lines:
            for calls in self.calls:
                value = line.scores[calls].value("distance") if calls in line.scores else None
                if limit is not None and value is not None and value <= limit:
                    reached[line.name] = calls
                    break
        return dict(sorted(reached.items(), key=lambda item: item[1]))

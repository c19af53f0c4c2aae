"""What a gate found: one check per metric, and the outcome of all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from optimize.measure.quality import Interval

Outcome = Literal["pass", "fail", "inconclusive"]

OUTCOMES: tuple[Outcome, ...] = ("fail", "pass", "inconclusive")

EXIT_CODES: Mapping[Outcome, int] = {"pass": 0, "fail": 1, "inconclusive": 3}


def decided(ratio: Interval, limit: float) -> Outcome:
    """What an interval of candidate / baseline says of a limit to its growth, in [0, inf)."""
    if ratio.low > 1 + limit:
        return "fail"
    return "pass" if ratio.high <= 1 + limit else "inconclusive"


@dataclass(frozen=True)
class Check:
    """One metric of the candidate, held against the baseline.

    Attributes:
        metric: its name.
        outcome: of this metric alone.
        message: what was found and what was expected, in a sentence.
        candidate, baseline: values, where the metric is a number.
        limit: share of the baseline by which it may grow, where it has one.
        ratio, low, high: candidate divided by baseline; with an interval where it was measured.
        unit: of the values, "" for plain counts.
        gates: whether it counts; a metric that the policy ignores is only reported.
    """

    metric: str
    outcome: Outcome
    message: str
    candidate: float | None = None
    baseline: float | None = None
    limit: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    gates: bool = True


@dataclass(frozen=True)
class Verdict:
    """The result of a gate.

    Attributes:
        candidate, baseline: what was compared, as the user named it.
        checks: one per metric, in order.
        samples: metric → raw seconds per request of "candidate" and "baseline".
        machine: fingerprint of what it ran on.
        notes: what a reader should know besides.
        facts: of the candidate, so that this verdict can be a baseline and a point of a trend.
        seconds: that the gate took.
    """

    candidate: str
    baseline: str
    checks: tuple[Check, ...]
    samples: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def outcome(self) -> Outcome:
        """A failure of one metric is a failure; what could not be decided is never a pass."""
        outcomes = {check.outcome for check in self.checks if check.gates}
        if "fail" in outcomes:
            return "fail"
        return "inconclusive" if "inconclusive" in outcomes or not outcomes else "pass"

    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.gates and check.outcome == "fail"]

    def check(self, metric: str) -> Check:
        """The check of a metric; KeyError without one."""
        return next(check for check in self.checks if check.metric == metric)

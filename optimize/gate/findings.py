"""The checks between costs and times: is it the same model, the same machine, the same result."""

import math
from collections.abc import Mapping
from typing import Any

from optimize.gate.checks import Check, Outcome, decided
from optimize.gate.facts import Facts
from optimize.gate.pairs import TIME_METRICS
from optimize.gate.policy import Policy
from optimize.gate.sides import SideFailed
from optimize.gate.stored import WorkRatio
from optimize.gate.timing import NAMES
from optimize.ir.errors import GateError, QualityError
from optimize.measure.quality import Interval
from optimize.measure.receipt import StoredExample
from optimize.passes.pipeline import results_error


def same_model(ours: Facts, theirs: Facts, baseline: str) -> list[str]:
    """Refuses a baseline of another model; says what else differs.

    Raises:
        GateError: requests or results differ, or the graphs that the passes were given.
    """
    if ours.signature != theirs.signature:
        raise GateError(
            f"baseline {baseline}: found another model, whose requests or results differ; expected "
            "a bundle of the same model"
        )
    if ours.source and theirs.source and ours.source != theirs.source:
        raise GateError(
            f"baseline {baseline}: found another model (graphs {theirs.source[:12]} before any "
            f"pass), expected {ours.source[:12]} as in the candidate; make a baseline of this model"
        )
    if ours.weights != theirs.weights:
        return ["the baseline has other weights: quality is compared, results are not"]
    return []


def broken(failure: SideFailed) -> Check:
    """What a side that broke down means: a candidate fails, a baseline decides nothing."""
    outcome: Outcome = "fail" if failure.side == "candidate" else "inconclusive"
    return Check("cpu_time", outcome, str(failure))


def not_comparable(other: list[str], policy: Policy) -> list[Check]:
    """Times of another machine are never used."""
    text = f"not comparable: {'; '.join(other)}; record a baseline here with --update"
    return [
        Check(metric, "inconclusive", f"{NAMES[metric]}: {text}", gates=policy.gates(metric))
        for metric in TIME_METRICS
    ]


def stored_checks(
    found: Mapping[str, Interval], stored: Mapping[str, WorkRatio], policy: Policy
) -> list[Check]:
    """Times as ratios to fixed work, now and when the baseline was stored."""
    checks = []
    for metric, now in found.items():
        if metric not in stored:
            continue
        then = stored[metric]
        ratio = Interval(now.value / then.value, now.low / then.high, now.high / then.low)
        outcome = decided(ratio, policy.stored)
        text = (
            f"{NAMES[metric]}: {ratio.value:.3f} times the stored baseline's, both as ratios to "
            f"fixed work, interval [{ratio.low:.3f}, {ratio.high:.3f}], limit "
            f"{1 + policy.stored:.2f}: {outcome}"
        )
        checks.append(
            Check(
                metric,
                outcome,
                text,
                candidate=now.value,
                baseline=then.value,
                limit=policy.stored,
                ratio=ratio.value,
                low=ratio.low,
                high=ratio.high,
                gates=policy.gates(metric),
            )
        )
    return checks


def example_check(
    results: Mapping[str, Any], stored: StoredExample, limit: float, policy: Policy
) -> Check:
    """Results of the stored request against the stored ones."""
    try:
        error = results_error([dict(results)], [dict(stored.results)])
    except QualityError:
        error = math.inf
    good = error <= limit
    text = f"stored request: relative error {error:.3g}, limit {limit:.3g}"
    if not good:
        text += "; the bundle does not give what it gave when it was made"
    return Check(
        "example",
        "pass" if good else "fail",
        text,
        candidate=error if math.isfinite(error) else None,
        limit=limit,
        gates=policy.gates("example"),
    )

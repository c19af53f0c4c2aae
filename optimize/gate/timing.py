"""Is the candidate slower: pairs are run until that is decided, or the time for it is spent."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from optimize.gate.checks import OUTCOMES, Check, Outcome, decided
from optimize.gate.pairs import (
    TIME_METRICS,
    Pair,
    Samples,
    TimeMetric,
    add_request,
    opened,
    ratio,
    slices_of,
)
from optimize.gate.policy import Policy
from optimize.ir.errors import QualityError
from optimize.ir.report import amount, seconds_text
from optimize.measure.quality import Interval

FIRST_LOOK = 8
"""Requests of each side before anything is decided."""
LOOK_GROWTH = 1.4
"""Factor between the numbers of requests after which the samples are looked at."""
PAIR_SECONDS = 5.0
"""After so long both sides go on in new processes, whose memory lies elsewhere."""
LEAST_MEMORY = 8 << 20
"""Bytes below which a difference of memory is none."""

NAMES = {"cpu_time": "CPU time", "wall_time": "wall time"}

MakePair = Callable[[], Pair]

Tell = Callable[[str, float], None]
"""Called with what is going on and the share of the time for it that is spent."""


@dataclass(frozen=True)
class Timing:
    """What was measured, and what it says about each metric."""

    samples: Samples
    checks: tuple[Check, ...]

    @property
    def outcome(self) -> Outcome:
        outcomes = {check.outcome for check in self.checks if check.gates}
        if "fail" in outcomes:
            return "fail"
        return "inconclusive" if "inconclusive" in outcomes else "pass"


def timed(make: MakePair, policy: Policy, tell: Tell) -> Timing:
    """Times two sides until every metric is decided; a failure must be found twice.

    A failure is confirmed by another measurement in new processes, whose memory lies elsewhere;
    where that one finds none, a third decides. Where nothing could be decided, measuring goes on
    in new processes. Half of the policy's seconds are for the first measurement.

    Args:
        make: starts both sides; called again for new processes.
        policy: limits, confidence, seconds.
        tell: told how far it is.
    Raises:
        SideFailed: a side ended or did not answer.
    """
    end = time.monotonic() + policy.seconds
    first = _measured(make, policy, policy.seconds / 2, Samples(), lambda s: tell("time", s))
    if first.outcome == "pass":
        return first
    left = end - time.monotonic()
    if first.outcome == "inconclusive":
        return _measured(make, policy, left, first.samples, lambda s: tell("more pairs", s))
    alone = Samples(slices=first.samples.slices)
    second = _measured(make, policy, left / 2, alone, lambda s: tell("confirm", s))
    if second.outcome != "pass":
        return _together([first, second], policy)
    left = max(1.0, end - time.monotonic())
    third = _measured(make, policy, left, alone, lambda s: tell("decide", s))
    return _together([first, second, third], policy)


def _together(runs: Sequence[Timing], policy: Policy) -> Timing:
    """What most measurements found, with the numbers of all of them together."""
    samples = runs[0].samples
    for run in runs[1:]:
        samples = samples.extended(run.samples)
    checks = []
    for check, *each in zip(
        time_checks(samples, policy), *(run.checks for run in runs), strict=True
    ):
        found = [item.outcome for item in each]
        outcome = next((o for o in OUTCOMES if found.count(o) > len(runs) / 2), "inconclusive")
        if check.gates and set(found) != {outcome}:
            text = f"{check.message}; {len(runs)} measurements found {', '.join(found)}"
            check = replace(check, message=text)
        checks.append(replace(check, outcome=outcome))
    return Timing(samples, tuple(checks))


def _measured(
    make: MakePair,
    policy: Policy,
    seconds: float,
    known: Samples,
    tell: Callable[[float], None],
) -> Timing:
    """Runs requests in turns until all metrics are decided or the seconds are spent."""
    start = time.monotonic()
    samples = Samples(known.slices).extended(known)
    look = max(FIRST_LOOK, samples.requests + 1)
    while True:
        with opened(make) as pair:
            began = time.monotonic()
            samples.slices = samples.slices or slices_of(pair)
            samples.peak_memory.append((0, 0))
            while time.monotonic() - began < PAIR_SECONDS:
                add_request(samples, pair)
                samples.peak_memory[-1] = (pair[0].peak_memory(), pair[1].peak_memory())
                spent = time.monotonic() - start
                tell(min(1.0, spent / seconds))
                if samples.requests < look and spent < seconds:
                    continue
                look = int(samples.requests * LOOK_GROWTH) + 1
                timing = Timing(samples, time_checks(samples, policy))
                if spent >= seconds or timing.outcome != "inconclusive":
                    return timing


def work_ratios(make: MakePair, policy: Policy, tell: Tell) -> tuple[dict[str, Interval], Samples]:
    """The first side's times divided by the second's, as narrow as a stored baseline needs.

    Raises:
        SideFailed: a side ended or did not answer.
        QualityError: the clock is too coarse.
    """
    start = time.monotonic()
    with opened(make) as pair:
        samples, look = Samples(slices_of(pair)), FIRST_LOOK
        while True:
            add_request(samples, pair)
            spent = time.monotonic() - start
            tell("time", min(1.0, spent / policy.seconds))
            if samples.requests < look and (spent < policy.seconds or samples.requests < 2):
                continue
            look = int(samples.requests * LOOK_GROWTH) + 1
            found: dict[str, Interval] = {
                metric: ratio(samples.array(metric), policy.confidence) for metric in TIME_METRICS
            }
            widest = max(item.high / item.low - 1 for item in found.values())
            if widest < policy.stored / 3 or spent >= policy.seconds:
                return found, samples


def time_checks(samples: Samples, policy: Policy) -> tuple[Check, ...]:
    """What samples say about CPU time, wall time and memory."""
    times = tuple(_time_check(metric, samples, policy) for metric in TIME_METRICS)
    return (*times, *_memory_checks(samples, policy))


def _time_check(metric: TimeMetric, samples: Samples, policy: Policy) -> Check:
    limit, name = policy.limit(metric), NAMES[metric]
    gates = policy.gates(metric)
    # Each metric may err in a part of the cases in which one of them may.
    confidence = 1 - (1 - policy.confidence) / len(TIME_METRICS)
    seconds = samples.array(metric)
    if len(seconds) < FIRST_LOOK:
        text = (
            f"{name}: found time for {len(seconds)} requests, expected at least {FIRST_LOOK}; give "
            "the policy more `seconds`, or the bundle a shorter stored request"
        )
        return Check(metric, "inconclusive", text, limit=limit, gates=gates)
    try:
        found = ratio(seconds, confidence)
    except QualityError as error:
        return Check(metric, "inconclusive", f"{name}: {error}", limit=limit, gates=gates)
    outcome = decided(found, limit)
    told = {
        "pass": "within the limit",
        "fail": "slower than the limit allows",
        "inconclusive": "too wide an interval to tell; use a quieter machine, or more `seconds`",
    }
    candidate, baseline = (statistics.median(seconds[..., side].sum(axis=1)) for side in (0, 1))
    return Check(
        metric,
        outcome,
        f"{name}: {found.value:.3f} times the baseline's, {confidence:.1%} interval "
        f"[{found.low:.3f}, {found.high:.3f}], limit {1 + limit:.3f}, {len(seconds)} requests of "
        f"{seconds_text(candidate)} in {seconds.shape[1]} slices: {told[outcome]}",
        candidate=candidate,
        baseline=baseline,
        limit=limit,
        ratio=found.value,
        low=found.low,
        high=found.high,
        unit="s",
        gates=gates,
    )


def _memory_checks(samples: Samples, policy: Policy) -> tuple[Check, ...]:
    """The highest memory of the processes; none where it is not known."""
    known = [pair for pair in samples.peak_memory if min(pair) > 0]
    if not known:
        return ()
    candidate, baseline = (statistics.median(pair[side] for pair in known) for side in (0, 1))
    limit = policy.limit("peak_memory")
    more = candidate - baseline
    fails = more > LEAST_MEMORY and candidate > baseline * (1 + limit)
    return (
        Check(
            "peak_memory",
            "fail" if fails else "pass",
            f"peak memory: {amount(candidate)}B, baseline {amount(baseline)}B, limit "
            f"{amount(max(baseline * (1 + limit), baseline + LEAST_MEMORY))}B",
            candidate=candidate,
            baseline=baseline,
            limit=limit,
            ratio=candidate / baseline,
            unit="B",
            gates=policy.gates("peak_memory"),
        ),
    )

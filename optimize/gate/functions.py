"""Gates of functions: in turns with another one, or against what was stored."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from optimize.gate.checks import Verdict
from optimize.gate.findings import not_comparable, stored_checks
from optimize.gate.machine import differences, fingerprint
from optimize.gate.policy import Policy
from optimize.gate.sides import FunctionSide
from optimize.gate.stored import read_stored, record
from optimize.gate.timing import timed, work_ratios
from optimize.measure.receipt import fixed_work

Function = Callable[[], object]


def gate_functions(
    candidate: Function, baseline: Function, policy: Policy, name: str = "function"
) -> Verdict:
    """Times two functions of this process in turns.

    Args:
        candidate, baseline: take nothing; what they return is dropped.
        policy: limits of `cpu_time` and `wall_time`, confidence, seconds.
        name: of the verdict.
    """
    start = time.monotonic()
    timing = timed(
        lambda: (FunctionSide(candidate), FunctionSide(baseline)), policy, lambda stage, share: None
    )
    return Verdict(
        name,
        "another function",
        timing.checks,
        samples=timing.samples.raw(),
        machine=fingerprint(policy.threads),
        seconds=time.monotonic() - start,
    )


def gate_stored_function(
    candidate: Function, path: Path, policy: Policy, name: str, update: bool = False
) -> Verdict:
    """Times a function against fixed work, and compares that with what was stored.

    Args:
        candidate: takes nothing; what it returns is dropped.
        path: of the stored baseline, which is written when it is not there.
        policy: `stored` is the limit.
        name: of the verdict.
        update: store anew, whatever was stored.
    Raises:
        GateError: the file is no baseline.
    """
    start = time.monotonic()
    machine = fingerprint(policy.threads)
    # Read before anything is measured, so that a file that is none is told at once.
    stored = read_stored(path) if path.exists() else None
    verdict = Verdict(name, str(path), (), machine=machine)
    other = [] if stored is None else differences(machine, stored.machine)
    if stored is not None and other and not update:
        return replace(verdict, checks=tuple(not_comparable(other, policy)))
    found, samples = work_ratios(
        lambda: (FunctionSide(candidate), FunctionSide(fixed_work())),
        policy,
        lambda stage, share: None,
    )
    if stored is None or update:
        checks = [record(path, name, found, machine)]
    else:
        checks = stored_checks(found, stored.times, policy)
    seconds = time.monotonic() - start
    return replace(verdict, checks=tuple(checks), samples=samples.raw(), seconds=seconds)

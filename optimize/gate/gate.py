"""The gate: is a bundle slower, larger or worse than its baseline.

Costs come first, which are exact; then the stored request, whose results must be what they were;
then times, as the ratio to the baseline that runs in turns with it.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from optimize.gate.checks import Check, Verdict
from optimize.gate.costs import cost_checks
from optimize.gate.facts import Facts, bundle_facts
from optimize.gate.findings import (
    broken,
    example_check,
    not_comparable,
    same_model,
    stored_checks,
)
from optimize.gate.machine import differences, fingerprint
from optimize.gate.pairs import Pair, Samples
from optimize.gate.policy import Policy
from optimize.gate.sides import BundleSide, SideFailed, shared_cores
from optimize.gate.stored import StoredBaseline, read_stored, record
from optimize.gate.timing import Tell, Timing, timed, work_ratios
from optimize.ir.errors import GateError
from optimize.measure.quality import Interval
from optimize.measure.receipt import (
    EXAMPLE_FILE,
    dump_example,
    example_limit,
    read_report,
    stored_example,
)
from optimize.passes.calibration import Calibration, signature_request
from optimize.runtime.bundle import read_file
from optimize.runtime.session import load


def gate_bundle(
    candidate: str | os.PathLike[str],
    baseline: str | os.PathLike[str],
    policy: Policy | None = None,
    *,
    target: Any = None,
    trust: Any = None,
    clock: bool = True,
    update: bool = False,
    tell: Tell | None = None,
) -> Verdict:
    """Holds a bundle against a baseline.

    Args:
        candidate: folder of the bundle in question.
        baseline: folder of another bundle of the same model, which is run in turns with it; or a
            `.json` file, which is written when it is not there.
        policy: what is allowed; the defaults without one.
        target, trust: as for `optimize.runtime.load`.
        clock: measure times and memory; without, costs alone are held.
        update: write the baseline file anew, whatever it said.
        tell: told what is going on.
    Returns:
        The verdict; its outcome is "inconclusive" when there is no baseline yet.
    Raises:
        GateError: the baseline is of another model, or cannot be read.
        BundleError: one of the two is no good bundle.
    """
    policy, say = policy or Policy(), tell or _silent
    start = time.monotonic()
    theirs = Path(baseline)
    stored = theirs.suffix == ".json"
    if not stored and not theirs.is_dir():
        return _without_baseline(candidate, theirs, policy)
    say("costs", 0.0)
    ours = bundle_facts(candidate)
    run = _Run(Path(candidate), policy, target, trust, ours, say)
    if not stored:
        verdict = run.against_bundle(theirs, clock)
    elif update or not theirs.exists():
        verdict = run.recorded(theirs, clock)
    else:
        verdict = run.against_file(theirs, read_stored(theirs), clock)
    return replace(verdict, seconds=time.monotonic() - start)


def _silent(stage: str, share: float) -> None:
    """Tells nobody."""


def _without_baseline(candidate: Any, baseline: Path, policy: Policy) -> Verdict:
    text = (
        f"found no baseline at {baseline}, expected the folder of a bundle or a .json file; export "
        "one from the branch that you compare with"
    )
    check = Check("baseline", "inconclusive", text)
    return Verdict(str(candidate), str(baseline), (check,), machine=fingerprint(policy.threads))


class _Run:
    """One gate of one candidate."""

    def __init__(
        self, candidate: Path, policy: Policy, target: Any, trust: Any, facts: Facts, tell: Tell
    ) -> None:
        self.candidate = candidate
        self.policy = policy
        self.target = target
        self.trust = trust
        self.facts = facts
        self.tell = tell
        self.machine = fingerprint(policy.threads)
        self._pairs = os.getpid()

    def against_bundle(self, baseline: Path, clock: bool) -> Verdict:
        """Costs, stored request and times, against another bundle."""
        theirs = bundle_facts(baseline)
        notes = same_model(self.facts, theirs, str(baseline))
        checks = [*cost_checks(self.facts, theirs, self.policy), *self._example()]
        samples = Samples()
        if clock:
            timing = self._timed(baseline)
            checks += timing.checks
            samples = timing.samples
        return self._verdict(str(baseline), checks, samples, notes)

    def recorded(self, path: Path, clock: bool) -> Verdict:
        """Writes the baseline; nothing is held against it yet."""
        times = self._work_ratios()[0] if clock else {}
        check = record(path, self.candidate.name, times, self.machine, self.facts)
        return self._verdict(str(path), [check], Samples(), [])

    def against_file(self, path: Path, stored: StoredBaseline, clock: bool) -> Verdict:
        """Costs exactly, and times against fixed work, where the machine is the same."""
        if stored.facts is None:
            raise GateError(f"baseline {path}: found one of a function, expected one of a bundle")
        notes = same_model(self.facts, stored.facts, str(path))
        checks = [*cost_checks(self.facts, stored.facts, self.policy), *self._example()]
        samples = Samples()
        if clock and stored.times:
            other = differences(self.machine, stored.machine)
            if other:
                checks += not_comparable(other, self.policy)
            else:
                found, samples = self._work_ratios()
                checks += stored_checks(found, stored.times, self.policy)
        return self._verdict(str(path), checks, samples, notes)

    def _verdict(
        self, baseline: str, checks: list[Check], samples: Samples, notes: list[str]
    ) -> Verdict:
        return Verdict(
            candidate=str(self.candidate),
            baseline=baseline,
            checks=tuple(checks),
            samples=samples.raw(),
            machine=self.machine,
            notes=tuple(notes),
            facts=self.facts.model_dump(),
        )

    def _timed(self, baseline: Path) -> Timing:
        """Times in turns; a candidate that breaks down has failed, a baseline says nothing."""
        with _request_file(self.candidate, baseline) as request:

            def make() -> Pair:
                cores = self._next_cores()
                return started(
                    [
                        lambda: self._side("candidate", self.candidate, request, cores),
                        lambda: self._side("baseline", baseline, request, cores),
                    ]
                )

            try:
                return timed(make, self.policy, self.tell)
            except SideFailed as failure:
                return Timing(Samples(), (broken(failure),))

    def _work_ratios(self) -> tuple[dict[str, Interval], Samples]:
        with _request_file(self.candidate, self.candidate) as request:

            def make() -> Pair:
                cores = self._next_cores()
                return started(
                    [
                        lambda: self._side("candidate", self.candidate, request, cores),
                        lambda: BundleSide("fixed work", None, cores=cores),
                    ]
                )

            return work_ratios(make, self.policy, self.tell)

    def _next_cores(self) -> Sequence[int] | None:
        """The cores of the next pair."""
        self._pairs += 1
        return shared_cores(self.policy.threads, self._pairs)

    def _side(
        self, name: str, bundle: Path, request: Path, cores: Sequence[int] | None
    ) -> BundleSide:
        return BundleSide(
            name,
            bundle,
            request,
            target=self.target,
            threads=self.policy.threads,
            trust=self.trust,
            cores=cores,
        )

    def _example(self) -> list[Check]:
        """The stored request must give the stored results."""
        stored = stored_example(self.candidate)
        if stored is None:
            return []
        self.tell("stored request", 0.0)
        with load(self.candidate, target=self.target, trust=self.trust) as session:
            limit = example_limit(read_report(self.candidate), session.target)
            results = {n: a for n, a in session(**stored.fields()).items() if hasattr(a, "dtype")}
        return [example_check(results, stored, limit, self.policy)]


@contextmanager
def _request_file(candidate: Path, baseline: Path) -> Iterator[Path]:
    """The request that both sides answer, in a file while it is needed.

    That of the baseline, else that of the candidate, else one drawn for the signature.
    """
    found = [read_file(bundle, EXAMPLE_FILE) for bundle in (baseline, candidate)]
    stored = next((content.tobytes() for content in found if content is not None), None)
    if stored is None:
        with load(candidate, target="onnx") as session:
            manifest = session.manifest
        request = signature_request(manifest.signature, manifest.loop, Calibration(), {}, 0)
        stored = dump_example(request, {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / EXAMPLE_FILE
        path.write_bytes(stored)
        yield path


def started(makers: Sequence[Callable[[], BundleSide]]) -> Pair:
    """Starts both sides at once and waits for both; none is left running when one fails."""
    sides = [make() for make in makers]
    try:
        first, second = (side.wait() for side in sides)
    except BaseException:
        for side in sides:
            side.close()
        raise
    return first, second

"""Runs passes one after the other, checks each, and writes its record.

For each pass: declines → fit → rewrite → spec check → oracles → error → figures → payment → record.
One that declines, matches nothing or does not pay is an error or a remark in the report, as the
recipe says; it is never silent.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from optimize.ir.errors import NumericsError, PassDeclined, PassError
from optimize.ir.program import Program
from optimize.ir.record import Record
from optimize.ir.spec import check_program
from optimize.measure.cost import program_flops
from optimize.measure.quality import psnr, relative_error
from optimize.measure.result_quality import answer_names
from optimize.passes.calibration import Request, requests
from optimize.passes.pass_base import Declined, Pass
from optimize.runtime.errors import OptimizeError

Results = list[dict[str, NDArray[Any]]]
"""What a program returned for each calibration request."""

Measure = Callable[[Program], float]
"""Seconds per request of a program on the target."""

STAGES = ("rewrite", "check", "oracles", "error")


class Progress(Protocol):
    """Called before each stage: what begins, how many stages are done, how many there are."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class Entry:
    """A pass to run; an `optional` one may decline, or be dropped when it does not pay."""

    item: Pass
    optional: bool = False


def run_passes(
    program: Program,
    passes: Sequence[Entry | Pass],
    *,
    verify: bool = True,
    calibration: Sequence[Request] | None = None,
    measure: Measure | None = None,
    progress: Progress | None = None,
) -> Program:
    """The program after all passes, with one record per pass in its history.

    Args:
        program: stays as it is.
        passes: in order; a bare pass is required.
        verify: run the oracles, the identity check and the error; without, only the spec check.
        calibration: the requests to compare results on; drawn by seed when not given.
        measure: seconds per request on the target; without, nothing is said about payment.
        progress: told before each stage.
    Raises:
        PassDeclined: a required pass does not apply.
        PassError: a pass failed, or left a program that breaks its specification.
        NumericsError: an oracle does not hold, or results are not finite.
    """
    entries = [item if isinstance(item, Entry) else Entry(item) for item in passes]
    if entries:
        program = replace(program, source=program.source_digest)
    pipeline = _Pipeline(program, entries, verify, calibration, measure, progress)
    for position in range(len(entries)):
        pipeline.run(position)
    return pipeline.program


class _Pipeline:
    """The state of one run: the program so far, and what it returned."""

    def __init__(
        self,
        program: Program,
        entries: Sequence[Entry],
        verify: bool,
        calibration: Sequence[Request] | None,
        measure: Measure | None,
        progress: Progress | None,
    ) -> None:
        self.program = program
        self.entries = entries
        self.verify = verify
        self.measure = measure
        self.progress = progress
        self.flops = program_flops(program)
        self.seconds = math.nan
        self.reference: Results = []
        self.results: Results = []
        self.calibration: Sequence[Request] = []
        check_program(program)
        if not entries:
            return
        self.calibration = calibration or requests(program)
        if verify:
            self._tell("reference", 0)
            self.reference = self.results = run_requests(program, self.calibration)
            _check_finite(self.results, "the unrewritten program")
        if measure is not None:
            self.seconds = measure(program)

    def run(self, position: int) -> None:
        """Runs one pass and appends its record."""
        entry, start = self.entries[position], time.perf_counter()
        item = entry.item
        self._tell(f"{item.name}: rewrite", position * len(STAGES))
        reason = item.declines(self.program)
        rewritten = fitted = None
        if reason is None:
            try:
                fitted = self._guarded(position, lambda: item.fit(self.program, self.calibration))
                rewritten = self._guarded(position, lambda: fitted.item.rewrite(self.program))
                reason = None if rewritten.sites else "found no site to rewrite"
            except Declined as declined:
                reason = str(declined)
        if reason is not None or rewritten is None or fitted is None:
            self._decline(entry, str(reason), start)
            return
        item = fitted.item
        kept = self.program
        after = replace(rewritten.program, history=kept.history, source=kept.source)
        self._tell(f"{item.name}: check", position * len(STAGES) + 1)
        check_program(after, item.name)
        oracles, error, results = self._verified(position, item, after)
        details = {**rewritten.details, **fitted.details}
        if self.verify:
            details |= self._figures(position, item, after)
            details["psnr"] = results_psnr(results, self.reference)
            match = results_match(results, self.reference)
            if match is not None:
                details["token_match"] = match
        seconds = math.nan
        if self.measure is not None:
            seconds = self.measure(after)
            details["seconds_per_request"] = {"before": self.seconds, "after": seconds}
            details["pays"] = seconds < self.seconds
            if entry.optional and seconds >= self.seconds:
                text = f"{self.seconds:.4g} s per request before, {seconds:.4g} s after"
                self._decline(entry, f"does not pay on the measured target: {text}", start, details)
                return
        flops = program_flops(after)
        record = Record(
            name=item.name,
            options=_options(item),
            sites=rewritten.sites,
            flops_before=self.flops,
            flops_after=flops,
            error=error,
            seconds=time.perf_counter() - start,
            oracles=oracles,
            details=details,
        )
        self.program = replace(after, history=(*self.program.history, record))
        self.flops, self.seconds, self.results = flops, seconds, results

    def _decline(
        self,
        entry: Entry,
        reason: str,
        start: float,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        name = entry.item.name
        if not entry.optional:
            raise PassDeclined(
                f"{name}: {reason}; remove it from the recipe, or mark it `optional: true`"
            )
        record = Record(
            name=name,
            options=_options(entry.item),
            declined=reason,
            flops_before=self.flops,
            flops_after=self.flops,
            seconds=time.perf_counter() - start,
            details=details or {},
        )
        self.program = replace(self.program, history=(*self.program.history, record))

    def _verified(
        self, position: int, item: Pass, after: Program
    ) -> tuple[dict[str, float], float | None, Results]:
        """Measured oracles, error against the unrewritten program, and the new results."""
        if not self.verify:
            return {}, None, []
        before = self.program
        self._tell(f"{item.name}: oracles", position * len(STAGES) + 2)
        measured = {}
        request = self._request()
        for result in self._guarded(position, lambda: item.oracles(before, after, request)):
            measured[result.name] = result.measured
            if not result.holds:
                raise NumericsError(
                    f"{item.name}: oracle {result.name!r}: found {result.measured:.4g}, expected "
                    f"at most {result.bound:.4g}; the pass is wrong for this model, remove it "
                    "from the recipe and report it"
                )
        self._tell(f"{item.name}: error", position * len(STAGES) + 3)
        identity = self._identity_error(position)
        if identity is not None:
            measured["identity"] = identity
        results = self._guarded(position, lambda: run_requests(after, self.calibration))
        _check_finite(results, f"the program after {item.name}")
        change = results_error(results, self.results)
        if item.numerics == "exact" and change != 0:
            raise NumericsError(
                f"{item.name}: found relative change {change:.4g}, expected none from an exact pass"
            )
        return measured, results_error(results, self.reference), results

    def _figures(self, position: int, item: Pass, after: Program) -> Mapping[str, Any]:
        """What the pass tells the report of a run on the first calibration request."""
        before, request = self.program, self._request()
        made: Mapping[str, Any] = self._guarded(
            position, lambda: item.figures(before, after, request)
        )
        return made

    def _request(self) -> dict[str, Any]:
        """The fields of the first calibration request."""
        return {name: value for name, value in self.calibration[0].items() if name != "seed"}

    def _identity_error(self, position: int) -> float | None:
        """The change at the options at which the pass must change nothing; it must be 0."""
        item = self.entries[position].item
        identity = item.identity()
        if identity.declines(self.program) is not None:
            return None
        try:
            rewritten = self._guarded(position, lambda: identity.rewrite(self.program))
        except Declined:
            return None
        first = self.calibration[:1]
        results = self._guarded(position, lambda: run_requests(rewritten.program, first))
        change = results_error(results, self.results[:1])
        if change != 0:
            raise NumericsError(
                f"{item.name}: found relative change {change:.4g} at its identity {identity}, "
                "expected none; the pass is wrong for this model, remove it from the recipe and "
                "report it"
            )
        return change

    def _guarded(self, position: int, run: Callable[[], Any]) -> Any:
        """Runs a part of a pass; an unforeseen exception names the pass and those before it."""
        try:
            return run()
        except (OptimizeError, Declined):
            raise
        except Exception as error:
            earlier = [entry.item.name for entry in self.entries[:position]]
            raise PassError(
                f"{self.entries[position].item.name}: failed with {type(error).__name__}: {error}; "
                f"passes before it: {', '.join(earlier) or 'none'}"
            ) from error

    def _tell(self, stage: str, done: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, len(self.entries) * len(STAGES))


def run_requests(program: Program, calibration: Sequence[Request]) -> Results:
    """What a program returns for each request."""
    return [
        {name: tensor.numpy() for name, tensor in program(**request).items()}
        for request in calibration
    ]


def results_error(results: Results, reference: Results) -> float:
    """The largest relative error over the outputs, each taken over all requests.

    Whole numbers, such as tokens, count the share that differs; see `results_match`.
    """
    worst = 0.0
    for name in answer_names(reference[0]):
        ours = [result[name] for result in results]
        theirs = [result[name] for result in reference]
        _check_shapes(name, ours, theirs)
        if theirs[0].dtype.kind != "f":
            worst = max(worst, 1.0 - _share_equal(ours, theirs))
            continue
        ours_flat = np.concatenate([np.ravel(item) for item in ours])
        theirs_flat = np.concatenate([np.ravel(item) for item in theirs])
        if not np.array_equal(ours_flat, theirs_flat):
            worst = max(worst, relative_error(ours_flat, theirs_flat))
    return worst


def results_match(results: Results, reference: Results) -> float | None:
    """The smallest share of equal tokens over the outputs of whole numbers; None without any.

    How many calls an answer took does not count.
    Answers end at different steps. Where one has ended and the other goes on, they differ.
    """
    shares = [
        _share_equal([result[name] for result in results], [result[name] for result in reference])
        for name in answer_names(reference[0])
        if reference[0][name].dtype.kind in "iu"
    ]
    return min(shares, default=None)


def _check_shapes(name: str, ours: list[NDArray[Any]], theirs: list[NDArray[Any]]) -> None:
    for found, expected in zip(ours, theirs, strict=True):
        grows = expected.dtype.kind in "iu" and expected.ndim > 1 and found.ndim == expected.ndim
        sizes = [list(item.shape) for item in (found, expected)]
        if grows:
            sizes = [size[:1] + size[2:] for size in sizes]
        if sizes[0] != sizes[1]:
            raise NumericsError(
                f"result {name!r}: found shape {list(found.shape)}, "
                f"expected {list(expected.shape)} as before the passes"
            )


def _share_equal(ours: list[NDArray[Any]], theirs: list[NDArray[Any]]) -> float:
    """The share of equal numbers; in dimension 1 one array may go on where the other has ended."""
    equal = total = 0
    for one, other in zip(ours, theirs, strict=True):
        if one.ndim > 1 and one.shape != other.shape:
            common = min(one.shape[1], other.shape[1])
            equal += int((one[:, :common] == other[:, :common]).sum())
            total += max(one.size, other.size)
        else:
            equal += int((one == other).sum())
            total += one.size
    return equal / total if total else 1.0


def results_psnr(results: Results, reference: Results) -> float:
    """The smallest peak signal-to-noise ratio over outputs and requests, in dB; inf when equal."""
    smallest = math.inf
    for ours, theirs in zip(results, reference, strict=True):
        for name, array in theirs.items():
            if array.dtype.kind == "f" and not np.array_equal(ours[name], array):
                smallest = min(smallest, psnr(ours[name], array))
    return smallest


def _check_finite(results: Results, made_by: str) -> None:
    for result in results:
        for name, array in result.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise NumericsError(
                    f"{made_by}: found NaN or Inf in result {name!r}, expected finite values"
                )


def _options(item: Pass) -> dict[str, Any]:
    return dataclasses.asdict(item)  # type: ignore[call-overload,no-any-return]

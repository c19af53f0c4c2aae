"""Runs the best recipes on the target, in turns with the unoptimised program."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from optimize.ir.exporting import Target
from optimize.ir.program import Program, as_arrays
from optimize.measure.quality import Interval
from optimize.measure.timing import interleaved_seconds
from optimize.passes.calibration import Request
from optimize.passes.pipeline import Progress
from optimize.runtime.session import Session, load

UNOPTIMISED = "unoptimised"
FEWEST_ROUNDS, MOST_ROUNDS = 5, 60

Frechet = Callable[[Session], Interval]
"""Fréchet distance of the samples of a session to real ones."""


@contextmanager
def opened(
    programs: Mapping[str, Program], target: Target, threads: int, progress: Progress
) -> Iterator[dict[str, Session]]:
    """Name → a session of the program, exported for a target.

    Args:
        programs: by name.
        target: what it is exported for, and run on.
        threads: of one operator.
        progress: told what is exported.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sessions = {}
        for index, (name, program) in enumerate(programs.items()):
            progress(f"export {name}", index, len(programs))
            path = program.export(folder / str(index), target=target)
            session = load(path, target=target, threads=threads, trust="native")
            sessions[name] = stack.enter_context(session)
        yield sessions


def timed(
    sessions: Mapping[str, Session], request: Request, seconds: float, progress: Progress
) -> dict[str, list[float]]:
    """Seconds of a request by each session, in rounds.

    Args:
        sessions: by name.
        request: what is asked.
        seconds: to spend; there are at least `FEWEST_ROUNDS` rounds.
        progress: told after each round.
    """
    fields = as_arrays(request)
    runs = {name: _asked(session, fields) for name, session in sessions.items()}
    return interleaved_seconds(
        runs,
        _rounds(runs, seconds),
        progress=lambda done, total: progress("measure, in turns", done, total),
    )


def _asked(session: Session, fields: Mapping[str, Any]) -> Callable[[], object]:
    return lambda: session(**fields)


def _rounds(runs: Mapping[str, Callable[[], object]], seconds: float) -> int:
    """As many rounds as fit, by one that is not measured."""
    start = time.perf_counter()
    for run in runs.values():
        run()
    elapsed = time.perf_counter() - start
    return min(MOST_ROUNDS, max(FEWEST_ROUNDS, int(seconds / elapsed)))

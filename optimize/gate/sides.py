"""The two sides of a comparison: bundles in processes of their own, or functions in this one.

A side runs a request in slices and says how long each took. Sides are asked in turns, slice by
slice, so that whatever else the machine does disturbs both alike.
"""

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from optimize.ir.errors import GateError

START_SECONDS = 600.0
"""Longest wait for a bundle to be loaded and to answer its first request."""


class SideFailed(GateError):
    """A side ended, or did not answer; `side` says which."""

    def __init__(self, side: str, message: str) -> None:
        super().__init__(f"{side}: {message}")
        self.side = side


class Side(Protocol):
    """What is timed.

    Attributes:
        steps: slices that a request can be cut into at most.
        seconds: of a request while warming up.
        facts: what it runs on.
    """

    steps: int
    seconds: float
    facts: dict[str, Any]

    def run(self, slices: int) -> tuple[float, float]:
        """Runs the next of so many slices of a request: its CPU and wall seconds."""
        ...

    def peak_memory(self) -> int: ...

    def close(self) -> None: ...


class BundleSide:
    """A bundle that answers one request over and over in a process of its own.

    Args:
        side: "candidate" or "baseline", for messages.
        bundle: its folder; None for fixed work that bundles are compared with.
        request: file of a stored example; of a bundle.
        target, threads, trust: as for `optimize.runtime.load`.
        cores: that its process may use; None leaves the choice to the system. Sides that take
            turns share them, or one might lie on a busier core than the other all along.
    Raises:
        SideFailed: it cannot be loaded, or its first request fails.
    """

    def __init__(
        self,
        side: str,
        bundle: Path | None,
        request: Path | None = None,
        *,
        target: str | None = None,
        threads: int | None = 1,
        trust: str | None = None,
        cores: Sequence[int] | None = None,
    ) -> None:
        options = {
            "bundle": None if bundle is None else str(bundle),
            "request": str(request),
            "target": target,
            "threads": threads,
            "trust": trust,
            "cores": None if cores is None else list(cores),
        }
        self._side = side
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._slices = 0
        self._memory = 0
        self._left = START_SECONDS
        self._process = subprocess.Popen(
            [sys.executable, "-m", "optimize.gate.worker", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **_one_thread(threads)},
        )
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._out, selectors.EVENT_READ)

    def wait(self) -> Self:
        """Waits until it has answered its first request."""
        self.facts = self._answer()
        self.steps = max(1, int(self.facts.pop("steps")))
        self.seconds = float(self.facts.pop("seconds"))
        self._left = max(60.0, 20 * self.seconds)
        return self

    def run(self, slices: int) -> tuple[float, float]:
        """Runs the next slice."""
        try:
            self._in.write(b"%d\n" % slices)
            self._in.flush()
        except OSError:
            self._ended()
        answer = self._answer()
        self._slices += 1
        self._memory = answer["peak_memory"]
        return answer["cpu_time"], answer["wall_time"]

    def peak_memory(self) -> int:
        """Bytes in memory at most so far."""
        return self._memory

    def close(self) -> None:
        """Ends the process; calling it again does nothing."""
        self._ready.close()
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    @property
    def _in(self) -> Any:
        return self._process.stdin

    @property
    def _out(self) -> Any:
        return self._process.stdout

    def _answer(self) -> dict[str, Any]:
        if not self._ready.select(self._left):
            raise SideFailed(
                self._side, f"found no answer within {self._left:.0f} s; {self._so_far}"
            )
        line = self._out.readline()
        if not line.endswith(b"\n"):
            self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> None:
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        self._errors.seek(0)
        lines = self._errors.read()[-4000:].decode(errors="replace").strip().splitlines()
        said = f": {lines[-1].strip()}" if lines else ""
        raise SideFailed(self._side, f"its process {how}, {self._so_far}{said}")

    @property
    def _so_far(self) -> str:
        return f"after {self._slices} slices of requests" if self._slices else "before it answered"


class FunctionSide:
    """A function of this process; short ones are called several times in a row.

    Args:
        function: what is timed; its result is dropped.
        least: seconds that a slice takes at least.
    """

    steps = 1

    def __init__(self, function: Callable[[], object], least: float = 0.001) -> None:
        self._function = function
        self.facts: dict[str, Any] = {"target": "a function"}
        function()
        self.loops = 1
        self.seconds = self._fastest()
        while self.seconds < least and self.loops < 1_000_000:
            self.loops *= 2
            self.seconds = self._fastest()

    def run(self, slices: int) -> tuple[float, float]:
        """Calls the function as often as a slice takes."""
        cpu, wall = self._timed(self.loops)
        return cpu / self.loops, wall / self.loops

    def _fastest(self) -> float:
        """Wall seconds of a slice that nothing disturbed."""
        return min(self._timed(self.loops)[1] for _ in range(3))

    def _timed(self, loops: int) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(loops):
            self._function()
        return time.process_time() - cpu, time.perf_counter() - wall

    def peak_memory(self) -> int:
        """Not known of one function among others."""
        return 0

    def close(self) -> None:
        """Nothing to free."""


def shared_cores(threads: int | None, pair: int) -> list[int] | None:
    """The cores of a pair of sides, other ones for each pair; None where they cannot be chosen."""
    if threads is None or not hasattr(os, "sched_getaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    return [allowed[(pair + place) % len(allowed)] for place in range(min(threads, len(allowed)))]


def _one_thread(threads: int | None) -> dict[str, str]:
    """Keeps numpy's library from starting threads that nobody asked for."""
    if threads is None:
        return {}
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {name: str(threads) for name in names}

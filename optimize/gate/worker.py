"""One side of a comparison, in a process of its own: `python -m optimize.gate.worker OPTIONS`.

The options are one JSON object. It answers with JSON lines: first what was loaded, then, for each
line on standard input, how long a slice of a request took. A line is the number of slices that the
request is cut into, between steps of the loop; so two processes can run their requests in turns
finer than a request. Loads no PyTorch, unless the bundle's target needs it.
"""

import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

MANY = 1_000_000
"""Slices that fixed work can be cut into."""


def main(text: str) -> None:
    """Loads a bundle, then runs slices of requests until standard input ends."""
    options = json.loads(text)
    if options["cores"] is not None:
        os.sched_setaffinity(0, options["cores"])
    # What libraries print must not come between the lines of the protocol.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    clock = _Clock(answers)
    if options["bundle"] is None:
        _serve_work(clock)
    else:
        _serve_bundle(options, clock)


def _serve_work(clock: "_Clock") -> None:
    """Does a fixed piece of work for each slice that is asked for."""
    from optimize.measure.receipt import fixed_work

    work = fixed_work()
    work()
    start = time.perf_counter()
    work()
    clock.tell(steps=MANY, seconds=MANY * (time.perf_counter() - start), target="fixed work")
    while clock.start():
        work()
        clock.stop(last=True)


def _serve_bundle(options: dict[str, Any], clock: "_Clock") -> None:
    """Answers one request of a bundle over and over, slice by slice."""
    import numpy as np

    from optimize.measure.receipt import read_example
    from optimize.runtime.session import load

    request = read_example(np.fromfile(options["request"], np.uint8)).fields()
    session = load(
        Path(options["bundle"]),
        target=options["target"],
        threads=options["threads"],
        trust=options["trust"],
    )
    steps, seconds = _warmed(session, request)
    clock.tell(steps=steps, seconds=seconds, target=session.target, reason=session.reason)
    gc.collect()
    gc.disable()
    while clock.start():
        session(**request, progress=clock.step)
        clock.stop(last=True)


def _warmed(session: Any, request: dict[str, Any]) -> tuple[int, float]:
    """Steps of the loop of a request, and the seconds of the second of two that warm up."""
    session(**request)
    seen: list[int] = []
    start = time.perf_counter()
    session(**request, progress=lambda done, total: seen.append(done))
    return len(seen), time.perf_counter() - start


class _Clock:
    """Stops time at the ends of slices, and waits there until the next one is asked for."""

    def __init__(self, answers: Any) -> None:
        self._answers = answers
        self._steps = 0
        self._slices = 1
        self._wall = self._cpu = 0.0

    def tell(self, **facts: Any) -> None:
        """Sends one line."""
        if "steps" in facts:
            self._steps = facts["steps"]
        self._answers.write(json.dumps({**facts, "peak_memory": peak_memory()}) + "\n")

    def start(self) -> bool:
        """Waits until a slice is asked for; False when none will be."""
        line = sys.stdin.readline()
        if not line:
            return False
        self._slices = int(line)
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return True

    def stop(self, last: bool) -> None:
        """Says how long the slice took."""
        cpu = time.process_time() - self._cpu
        wall = time.perf_counter() - self._wall
        self.tell(wall_time=wall, cpu_time=cpu, last=last)

    def step(self, done: int, total: int) -> None:
        """Called after each step of the loop."""
        if done < self._steps and slice_ends(done, self._steps, self._slices):
            self.stop(last=False)
            if not self.start():
                sys.exit(0)


def slice_ends(done: int, steps: int, slices: int) -> bool:
    """Whether a slice ends after `done` of `steps` steps, when they are cut into `slices`."""
    return done * slices // steps != (done - 1) * slices // steps


def peak_memory() -> int:
    """Bytes that this process had in memory at most."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        # Elsewhere; on Linux this would include what the starting process had.
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return size if sys.platform == "darwin" else size * 1024


if __name__ == "__main__":
    main(sys.argv[1])

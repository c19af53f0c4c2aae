"""Times bundles of one model in turns, and counts what their drafts kept."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.ir.program import Program
from optimize.measure.acceptance import acceptance
from optimize.passes.attach_draft import AttachDraft
from optimize.runtime import Session, load

Tokens = NDArray[np.int64]
Way = Callable[[Tokens, int], Tokens]
"""(prompt [B, P], seed) → tokens [B, n]."""


def with_draft(program: Program, options: Mapping[str, Any]) -> Program:
    """The program with a draft attached.

    Raises:
        RuntimeError: the pass declines.
    """
    item = AttachDraft(**options)
    reason = item.declines(program)
    if reason is not None:
        raise RuntimeError(f"attach_draft: {reason}")
    return item.rewrite(program).program


class Sessions:
    """Programs as bundles in ONNX Runtime, one session each."""

    def __init__(self, programs: Mapping[str, Program], threads: int, **request: Any) -> None:
        self._stack = ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._sessions = {}
        for number, (name, program) in enumerate(programs.items()):
            path = program.export(Path(folder) / str(number))
            self._sessions[name] = self._stack.enter_context(load(path, threads=threads))
        self._seeded = {name: bool(program.loop.noise) for name, program in programs.items()}
        self._request = request
        self.accepted: dict[str, list[Tokens]] = {name: [] for name in programs}

    def __enter__(self) -> "Sessions":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def session(self, name: str) -> Session:
        """One of them as it is."""
        return self._sessions[name]

    def way(self, name: str) -> Way:
        """Runs one of them."""
        session, accepted = self._sessions[name], self.accepted[name]

        def run(prompt: Tokens, seed: int) -> Tokens:
            drawn = {"seed": seed} if self._seeded[name] else {}
            results = session(input_ids=prompt, **drawn, **self._request)
            if "accepted" in results:
                accepted.append(results["accepted"].ravel())
            tokens: Tokens = results["tokens"]
            return tokens

        return run

    def ways(self) -> dict[str, Way]:
        """All of them."""
        return {name: self.way(name) for name in self._sessions}

    def kept(self, name: str) -> dict[str, Any]:
        """Tokens per call and acceptance by position of one, over all its runs."""
        return acceptance(np.concatenate(self.accepted[name])[None])


def seconds_per_token(
    ways: Mapping[str, Way], prompts: Sequence[Tokens], repeats: int = 1
) -> tuple[dict[str, list[float]], dict[str, list[Tokens]]]:
    """Seconds per token of each way and prompt, the ways in turns, and their tokens.

    The first prompt is run once before, unmeasured.
    """
    for way in ways.values():
        way(prompts[0], 0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, list[Tokens]] = {name: [] for name in ways}
    for seed, prompt in enumerate(prompts):
        spent: dict[str, list[float]] = {name: [] for name in ways}
        made: dict[str, Tokens] = {}
        for _ in range(repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                made[name] = way(prompt, seed)
                spent[name].append((time.perf_counter() - start) / made[name].size)
        for name in ways:
            seconds[name].append(statistics.median(spent[name]))
            tokens[name].append(made[name])
    return seconds, tokens


def speedup(seconds: Mapping[str, Sequence[float]], name: str, against: str) -> float:
    """How many times faster one way is than another, over all prompts together."""
    return sum(seconds[against]) / sum(seconds[name])

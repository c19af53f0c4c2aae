"""Progress of a command on standard error: a bar on a terminal, a line per stage elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from optimize.commands.console import console, say

QUIET_SECONDS = 2.0
"""Short commands say nothing of their stages."""


class StageBar:
    """A bar that is told stages: `bar("fuse_solver: rewrite", 4, 8)`."""

    def __init__(self, quiet: bool = False) -> None:
        output = console(to_error=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
        self.lines = not quiet and not output.is_terminal
        self.start = time.perf_counter()
        self.stage = ""
        self.progress = Progress(
            *columns,
            TimeElapsedColumn(),
            console=output,
            transient=True,
            disable=quiet or self.lines,
        )
        self.task = self.progress.add_task("", total=None)

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.progress.update(self.task, description=stage, completed=done, total=total)
        self._tell(stage)

    def wait(self, stage: str) -> None:
        """Shows that something of unknown length is running."""
        self.progress.update(self.task, description=stage, total=None)
        self._tell(stage)

    def _tell(self, stage: str) -> None:
        elapsed = time.perf_counter() - self.start
        if self.lines and stage != self.stage and elapsed > QUIET_SECONDS:
            say(f"{elapsed:6.1f} s  {stage}", "dim")
        self.stage = stage

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

"""Progress of a command on standard error: a bar where there is a terminal, else nothing."""

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from optimize.commands.console import console


class StageBar:
    """A bar that is told stages: `bar("fuse_solver: rewrite", 4, 8)`."""

    def __init__(self, quiet: bool = False) -> None:
        output = console(to_error=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
        disable = quiet or not output.is_terminal
        self.progress = Progress(
            *columns, TimeElapsedColumn(), console=output, transient=True, disable=disable
        )
        self.task = self.progress.add_task("", total=None)

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.progress.update(self.task, description=stage, completed=done, total=total)

    def wait(self, stage: str) -> None:
        """Shows that something of unknown length is running."""
        self.progress.update(self.task, description=stage, total=None)

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

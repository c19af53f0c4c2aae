"""Which loop a request runs, where its steps are known only after a run."""

from dataclasses import replace

from optimize.ir.program import Program
from optimize.runtime.loop import Repeat


def ends_by_itself(program: Program) -> bool:
    """Whether the loop runs until a flag, so that its steps are known only after a run."""
    return any(isinstance(item, Repeat) and item.until is not None for item in program.loop.body)


def with_steps(program: Program, steps: int) -> Program:
    """The program with the loop that a run showed: what runs until a flag ends after `steps`."""
    body = tuple(
        item.model_copy(update={"steps": item.steps[:steps]})
        if isinstance(item, Repeat) and item.until is not None
        else item
        for item in program.loop.body
    )
    return replace(program, loop=program.loop.model_copy(update={"body": body}))

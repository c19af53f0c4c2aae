"""Seconds of a request, predicted without running it."""

from dataclasses import replace

from optimize.ir.program import Program
from optimize.measure.cost import program_bytes, program_flops
from optimize.runtime.loop import Repeat

FLOPS_PER_SECOND, BYTES_PER_SECOND = 5e10, 1e10


def predict(program: Program) -> float:
    """Seconds of one request at the traced sizes."""
    return max(program_flops(program) / FLOPS_PER_SECOND, program_bytes(program) / BYTES_PER_SECOND)


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

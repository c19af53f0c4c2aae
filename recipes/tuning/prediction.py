"""Seconds of a request on a machine, predicted without running it where that can be."""

import math
from dataclasses import replace

from optimize.ir.errors import NumericsError
from optimize.ir.program import Program
from optimize.measure.machines import Machine
from optimize.measure.roofline import predict_seconds
from optimize.runtime.loop import Repeat


def predicted(program: Program, machine: Machine, steps: int | None = None) -> float | None:
    """Seconds of one request at the traced sizes; None where only a run shows its steps.

    Args:
        program: its loop may run until a flag.
        machine: what it runs on.
        steps: that a run took.
    Raises:
        NumericsError: the cost model gives no number.
    """
    if any(isinstance(item, Repeat) and item.until is not None for item in program.loop.body):
        if steps is None:
            return None
        program = _with_steps(program, steps)
    seconds = predict_seconds(program, machine)
    if not 0 < seconds < math.inf:
        raise NumericsError(
            f"cost model: found {seconds} s for a request on {machine.name}, expected a number "
            "above 0; this is a defect of the model or of the machine's rates"
        )
    return seconds


def _with_steps(program: Program, steps: int) -> Program:
    """The program with the loop that a run showed: what runs until a flag ends after `steps`."""
    body = tuple(
        item.model_copy(update={"steps": item.steps[:steps]})
        if isinstance(item, Repeat) and item.until is not None
        else item
        for item in program.loop.body
    )
    return replace(program, loop=program.loop.model_copy(update={"body": body}))

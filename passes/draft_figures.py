"""What a run of a program with a draft shows about it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from optimize.ir.program import Program
from optimize.measure.acceptance import acceptance


def draft_figures(program: Program, request: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """The figures of one request.

    Args:
        program: with a draft.
        request: its fields.
        depth: most drafted tokens that a round can keep.
    """
    seed = 0 if program.loop.noise else None
    accepted = program(seed=seed, **request).get("accepted")
    rounds = np.zeros((1, 0), np.int64) if accepted is None else accepted.numpy()
    return acceptance(rounds, depth)

"""What a run of a program with a draft shows about it: how much of what is drafted is kept."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.ir.program import Program


def draft_figures(program: Program, request: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """The figures of one request.

    Args:
        program: with a draft.
        request: its fields.
        depth: most drafted tokens that a round can keep.
    """
    seed = {"seed": 0} if program.loop.noise else {}
    accepted = program(**request, **seed).get("accepted")
    rounds = np.zeros((1, 0), np.int64) if accepted is None else accepted.numpy()
    return acceptance(rounds, depth)


def acceptance(accepted: NDArray[np.int64], depth: int) -> dict[str, Any]:
    """Tokens per call of the target, and the acceptance rate by position.

    Args:
        accepted: [batch, rounds], drafted tokens that each round kept; -1 where a sample had ended.
        depth: most that a round can keep.
    Returns:
        "rounds", "tokens_per_call", and "acceptance_rate": of the rounds that kept all earlier
        positions, the share that kept this one; shorter where no round got there.
    """
    kept = accepted[accepted >= 0]
    rates = []
    for position in range(depth):
        tried = int((kept >= position).sum())
        if tried == 0:
            break
        rates.append(float((kept > position).sum() / tried))
    return {
        "rounds": len(kept),
        "tokens_per_call": float(kept.mean() + 1) if len(kept) else 1.0,
        "acceptance_rate": rates,
    }

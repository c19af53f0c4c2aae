"""How much of what a draft proposes is kept, from the result "accepted" of a program."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def acceptance(accepted: NDArray[np.int64], depth: int | None = None) -> dict[str, Any]:
    """Tokens per call of the target, and the acceptance rate by position.

    Args:
        accepted: [batch, rounds], drafted tokens that each round kept; -1 where a sample had ended.
        depth: most that a round can keep; None for the most that one did.
    Returns:
        "rounds", "tokens_per_call", and "acceptance_rate": of the rounds that kept all earlier
        positions, the share that kept this one; shorter where no round got there.
    """
    kept = accepted[accepted >= 0]
    rates = []
    for position in range(int(kept.max(initial=0)) if depth is None else depth):
        tried = int((kept >= position).sum())
        if tried == 0:
            break
        rates.append(float((kept > position).sum() / tried))
    return {
        "rounds": len(kept),
        "tokens_per_call": float(kept.mean() + 1) if len(kept) else 1.0,
        "acceptance_rate": rates,
    }

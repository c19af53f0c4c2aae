"""Chooses how many tokens to draft, from what is kept of long drafts and from what they cost.

A call of the target reads all of its weights whatever the number of rows, so costs are counted in
bytes. With a_i the share of rounds that keep at least i drafted tokens, drafts of n tokens bring
1 + a_1 + … + a_n tokens per round.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from optimize.ir.program import Program
from optimize.measure.acceptance import acceptance
from optimize.measure.cost import graph_bytes

LONGEST = 8
"""Tokens of the drafts that are tried."""


def fitted_length(
    program: Program,
    requests: Sequence[Mapping[str, Any]],
    attached: Callable[[int], Program],
) -> tuple[int, dict[str, Any]]:
    """The draft length that emits most tokens per byte, and why.

    Args:
        program: the target.
        requests: calibration requests.
        attached: draft length → the program with that draft.
    """
    assert program.decoding is not None
    longest = min(LONGEST, program.decoding.loop.max_new_tokens - 1)
    tried = attached(longest)
    kept = [tried(**request)["accepted"].numpy().ravel() for request in requests]
    figures = acceptance(np.concatenate(kept)[None], longest)
    shares = np.cumprod([*figures["acceptance_rate"], *[0.0] * longest][:longest])
    tokens = 1 + np.cumsum(shares)
    whole = graph_bytes(program.graphs["decode"])
    extra = graph_bytes(tried.graphs["draft"]) + graph_bytes(tried.graphs["verify"]) - whole
    costs = 1 + np.arange(1, longest + 1) * extra / longest / whole
    best = int(np.argmax(tokens / costs))
    details = {
        "draft_length": best + 1,
        "acceptance_rate": figures["acceptance_rate"],
        "expected_gain": float(tokens[best] / costs[best]),
    }
    return best + 1, details

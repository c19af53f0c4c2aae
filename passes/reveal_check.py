"""Checks that hold of every loop that fills in masked text: the oracles of its passes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from optimize.ir.program import Program
from optimize.passes.pass_base import OracleResult


def reveal_oracles(program: Program, request: Mapping[str, Any]) -> list[OracleResult]:
    """What was given stays, all is filled in, and no call reveals more than planned."""
    unmasking = program.unmasking
    assert unmasking is not None
    mask_id, given = unmasking.loop.mask, dict(request)
    seed = given.pop("seed", 0)
    texts = np.stack(program.watch(("text",), seed=seed, **given)["text"])
    masked = texts == mask_id
    changed = ((texts[1:] != texts[:-1]) & ~masked[:-1]).sum()
    left = masked[-1].sum()
    widest = max(unmasking.groups)
    shown = masked.sum(-1)
    most = int((shown[:-1] - shown[1:]).max(initial=0))
    results = [
        OracleResult("tokens that changed after they were filled in", float(changed), 0.0),
        OracleResult("masks left at the end", float(left), 0.0),
    ]
    if unmasking.first_hitting is not None:
        results.append(OracleResult("most reveals of a call", float(most), float(widest)))
    return results

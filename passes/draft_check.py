"""The check of a greedy draft: its text is the target's own, token by token."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from optimize.ir.program import Program
from optimize.passes.pass_base import OracleResult

TIE = 1e-4
"""Logits closer than this share of their range are a tie, which other shapes may round apart."""


def draft_oracles(
    before: Program, after: Program, request: Mapping[str, Any]
) -> list[OracleResult]:
    """Samples whose text leaves the target's without a tie; none may."""
    expected, found = (program(**request)["tokens"].numpy() for program in (before, after))
    wrong = 0
    for sample in range(len(expected)):
        length = min(expected.shape[1], found.shape[1])
        differs = np.flatnonzero(expected[sample, :length] != found[sample, :length])
        if len(differs) == 0:
            continue
        first = int(differs[0])
        pair = [int(tokens[sample, first]) for tokens in (expected, found)]
        prefix = expected[sample, :first]
        wrong += not _is_tie(before, request, sample, prefix, pair)
    return [OracleResult("samples that leave the target's text", float(wrong), 0.0)]


def _is_tie(
    program: Program, request: Mapping[str, Any], sample: int, prefix: Any, pair: list[int]
) -> bool:
    """Whether the target finds two tokens equally likely behind a prefix of its own."""
    assert program.decoder is not None and program.decoding is not None
    if program.decoding.image_tokens:
        return False
    ids = torch.as_tensor(np.asarray(request["input_ids"]))[sample]
    lengths = np.broadcast_to(np.asarray(request.get("lengths", 0)), (len(request["input_ids"]),))
    length = int(lengths[sample]) or len(ids)
    text = torch.cat([ids[:length], torch.from_numpy(prefix)])[None]
    positions = torch.arange(text.shape[1])[None] + program.decoding.position_shift
    inputs = {"input_ids": text, "positions": positions}
    logits = program.decoder.run(program.weights, inputs)["logits"][0, -1].double()
    spread = float(logits.max() - logits.min())
    return abs(float(logits[pair[0]] - logits[pair[1]])) <= TIE * spread

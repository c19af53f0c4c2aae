"""Checks of an attached draft: greedy text is the target's own, draws are as the draft says."""

import math
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch

from optimize.ir.program import Program
from optimize.passes.pass_base import OracleResult

COPIES, MOST_SURPRISING = 128, 6.0
"""Samples of the check of draws, and how many standard deviations they may be off."""

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


def drawn_oracles(after: Program, request: Mapping[str, Any]) -> list[OracleResult]:
    """Whether a draft draws from the distribution that it hands to the verifier.

    A verifier that is told another distribution than tokens were drawn from changes the text. How
    likely the first drafted tokens behind copies of a prompt are is held against how likely drawn
    ones would be; a token that the draft calls impossible fails at once.
    """
    draft = after.graphs["draft"]
    if "draft_probabilities" not in draft.outputs or "draft_uniforms" not in draft.inputs:
        return []
    copies = {name: _copied(value) for name, value in request.items()}
    run = after.prepared(copies, seed=0)
    # A step ends where something is appended: that of the prefill, then the first round.
    if len(list(islice(run.steps(), 2))) < 2:
        return []
    p = torch.from_numpy(run.read("draft_probabilities"))[:, 0]
    tokens = torch.from_numpy(run.read("drafted"))[:, 0]
    if bool((p.gather(1, tokens[:, None]) <= 0).any()):
        return [OracleResult("surprise of drafted tokens", math.inf, MOST_SURPRISING)]
    # A drawn token has probability sum p^2 on average; the likeliest has more, any old one less.
    drawn = p.gather(1, tokens[:, None])[:, 0]
    mean, square = (p**2).sum(1), (p**3).sum(1)
    spread = (square - mean**2).sum().clamp(min=1e-12).sqrt()
    surprise = ((drawn - mean).sum() / spread).abs().item()
    return [OracleResult("surprise of drafted tokens", surprise, MOST_SURPRISING)]


def _copied(value: Any) -> Any:
    """The first sample of a field many times; numbers as they are."""
    array = np.asarray(value)
    return value if array.ndim == 0 else np.repeat(array[:1], COPIES, 0)

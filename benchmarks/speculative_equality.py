"""Counts texts that a draft leaves as they are, and tells ties from errors."""

import numpy as np
import torch
from speculative_timing import Tokens

from optimize.ir.program import Program

TIE = 1e-4
"""Logits closer than this share of their range are a tie, which other shapes may round apart."""


def compared(
    program: Program,
    prompts: Tokens,
    lengths: Tokens,
    expected: Tokens,
    found: Tokens,
) -> dict[str, int]:
    """How many texts are equal, leave the target's at a tie, or differ.

    Args:
        program: the target, greedy.
        prompts: [B, P] int64, padded at their end.
        lengths: [B] tokens of each that count.
        expected, found: [B, n] and [B, m] tokens of plain decoding and with a draft; the shorter
            one is padded.
    """
    assert program.decoding is not None
    width, pad = max(expected.shape[1], found.shape[1]), program.decoding.loop.pad_token or 0
    expected, found = (
        np.pad(tokens, ((0, 0), (0, width - tokens.shape[1])), constant_values=pad)
        for tokens in (expected, found)
    )
    counts = {"equal": 0, "ties": 0, "differ": 0}
    for sample, (one, other) in enumerate(zip(expected, found, strict=True)):
        places = np.flatnonzero(one != other)
        if len(places) == 0:
            counts["equal"] += 1
            continue
        first = int(places[0])
        text = np.concatenate([prompts[sample, : lengths[sample]], one[:first]])
        kind = "ties" if _is_tie(program, text, int(one[first]), int(other[first])) else "differ"
        counts[kind] += 1
    return counts


def _is_tie(program: Program, text: Tokens, one: int, other: int) -> bool:
    """Whether the target finds two tokens equally likely behind a text."""
    assert program.decoder is not None and program.decoding is not None
    ids = torch.from_numpy(text)[None]
    positions = torch.arange(ids.shape[1])[None] + program.decoding.position_shift
    inputs = {"input_ids": ids, "positions": positions}
    logits = program.decoder.run(program.weights, inputs)["logits"][0, -1].double()
    near = (logits[one] - logits[other]).abs() <= TIE * (logits.max() - logits.min())
    return bool(near)

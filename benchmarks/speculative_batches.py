"""Batches of prompts of unequal length on the zoo's language model of plays, likeliest tokens.

Every sample goes on at its own pace, and a batch ends with its slowest sample. Drafts pay less the
larger a batch is: its plain steps read the weights once for all samples already.
"""

import statistics
import time
from typing import Any

import numpy as np
import torch
from parts import Figures
from speculative_equality import compared
from speculative_real import CHIMERA, MODEL, PROMPT, TOKENS
from speculative_timing import Sessions, Tokens, with_draft

from optimize.capture.from_decoder import Parts, capture_decoder
from optimize.ir.decode import DecodeLoop
from optimize.ir.program import Program
from optimize.passes.drafts.catalog import register_draft
from optimize.recipes.zoo.shakespeare import (
    held_out_prompts,
    load_shakespeare,
    load_shakespeare_draft,
)

SIZES, REPEATS, SHORTEST, FIRST = (1, 4, 16), 3, 8, 20
"""Samples of a batch, timings of each, tokens of the shortest prompt, number of its passage."""

DRAFTS = {
    "model": {**MODEL, "draft_length": 2},
    "chimera": {**CHIMERA, "draft_length": 3},
    "lookup": {"draft_length": 2},
}


def batches() -> Figures:
    """Speedup over plain decoding and equal texts, by draft and batch; with two threads besides."""
    torch.set_num_threads(1)
    loop = DecodeLoop(PROMPT, TOKENS)
    register_draft("draft", capture_decoder(Parts(load_shakespeare_draft()), loop))
    program = capture_decoder(Parts(load_shakespeare()), loop)
    programs = {"plain": program} | {name: with_draft(program, o) for name, o in DRAFTS.items()}
    figures: Figures = {}
    totals = {name: {"equal": 0, "ties": 0, "differ": 0} for name in DRAFTS}
    with Sessions(programs, 1) as sessions:
        for size in SIZES:
            figures |= _batch(program, sessions, size, f"batch_{size}", totals)
    with Sessions(programs, 2) as sessions:
        figures |= _batch(program, sessions, 1, "two_threads", totals)
    for name, counts in totals.items():
        figures |= {f"batches_{kind}_{name}": count for kind, count in counts.items()}
    return figures


def _batch(
    program: Program, sessions: Sessions, size: int, label: str, totals: dict[str, dict[str, int]]
) -> Figures:
    """Speedups of one batch; its texts are added to the totals."""
    prompts = held_out_prompts(size, PROMPT, FIRST).numpy()
    lengths = np.linspace(PROMPT, SHORTEST, size).astype(np.int64)
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", *DRAFTS)}
    tokens: dict[str, Tokens] = {}
    for number in range(REPEATS + 1):
        for name, spent in seconds.items():
            start = time.perf_counter()
            made: Any = sessions.session(name)(input_ids=prompts, lengths=lengths)
            if number:
                spent.append(time.perf_counter() - start)
            tokens[name] = made["tokens"]
    for name in DRAFTS:
        found = compared(program, prompts, lengths, tokens["plain"], tokens[name])
        for kind, count in found.items():
            totals[name][kind] += count
    return {
        f"{label}_{name}_speedup": statistics.median(
            plain / own for plain, own in zip(seconds["plain"], seconds[name], strict=True)
        )
        for name in DRAFTS
    }

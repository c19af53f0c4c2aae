"""Whether drafts leave texts alone: by enumeration, on a thousand texts, and over a long time."""

import gc
import random
import resource
import sys
from pathlib import Path

import numpy as np
import torch
from parts import Figures
from speculative_equality import compared
from speculative_timing import Sessions, Tokens, Way, with_draft

from optimize.capture.from_decoder import Parts, capture_decoder
from optimize.ir.decode import DecodeLoop
from optimize.passes.drafts.catalog import register_draft
from optimize.recipes.zoo.arithmetic import load_arithmetic, load_arithmetic_draft
from optimize.recipes.zoo.arithmetic_data import (
    END,
    LONGEST_ANSWER,
    PROMPT_TOKENS,
    draw_problems,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.passes.verifiers.enumerated import tables
from tests.passes.verifiers.test_lossless import CASES, outcome_of

TABLES = 4
TEXTS, BATCH, LONG_RUN = 1000, 100, 10_000
THREADS = 1


def lossless() -> Figures:
    """The largest error of any verifier, equal greedy texts, and what a long run leaves behind."""
    torch.set_num_threads(THREADS)
    return {"lossless_error_max": _largest_error(), **_texts()}


def _largest_error() -> float:
    """Over random Markov tables: |distribution of three tokens - the target's|."""
    errors = []
    for name in CASES:
        for seed in range(TABLES):
            p, q = tables(3, seed)
            errors.append(outcome_of(name, p, q).error())
    return float(max(errors))


def _texts() -> Figures:
    """zoo:arithmetic with three kinds of drafts; samples of a batch go on at their own pace."""
    loop = DecodeLoop(PROMPT_TOKENS, LONGEST_ANSWER, stop_tokens=(END,), pad_token=END)
    register_draft("worker", capture_decoder(Parts(load_arithmetic_draft()), loop))
    program = capture_decoder(Parts(load_arithmetic()), loop)
    model = {"draft": "model", "source": "worker"}
    drafts = {
        "chain": {**model, "draft_length": 4},
        "tree": {**model, "tree": ("0", "1", "00", "01", "000")},
        "lookup": {"draft_length": 3},
    }
    problems = draw_problems(TEXTS, random.Random(7), held_out=True)
    prompts = np.array([problem.prompt for problem in problems])
    programs = {"plain": program} | {k: with_draft(program, o) for k, o in drafts.items()}
    counts = {name: {"equal": 0, "ties": 0, "differ": 0} for name in drafts}
    with Sessions(programs, THREADS) as sessions:
        ways = sessions.ways()
        for first in range(0, TEXTS, BATCH):
            batch = prompts[first : first + BATCH]
            expected = ways["plain"](batch, 0)
            for name in drafts:
                found = ways[name](batch, 0)
                lengths = np.full(len(batch), batch.shape[1])
                for kind, count in compared(program, batch, lengths, expected, found).items():
                    counts[name][kind] += count
        growth, tokens = _growth(ways["chain"], prompts)
    return {
        **{f"greedy_{k}_{name}": count for name, row in counts.items() for k, count in row.items()},
        "greedy_equal": min(row["equal"] for row in counts.values()),
        "greedy_ties": max(row["ties"] for row in counts.values()),
        "greedy_prompts": TEXTS,
        "memory_growth_mib": growth,
        "memory_tokens": tokens,
    }


def _growth(way: Way, prompts: Tokens) -> tuple[float, int]:
    """MiB that the process holds more after many requests of one session, and their tokens."""
    for number in range(20):
        way(prompts[number : number + 1], 0)
    before, tokens, number = _resident_mib(), 0, 0
    while tokens < LONG_RUN:
        tokens += way(prompts[number % TEXTS : number % TEXTS + 1], 0).size
        number += 1
    return _resident_mib() - before, tokens


def _resident_mib() -> float:
    """What the process holds now; its high-water mark would hide a leak below earlier batches."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20

"""Early commits on zoo:long-sums in ONNX Runtime: calls, time, right answers."""

import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from optimize.passes.commit_early import CommitEarly
from optimize.recipes.zoo.long_sums import long_sums_program
from optimize.recipes.zoo.long_sums_data import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    SUM_START,
    draw_texts,
    is_correct,
)
from optimize.runtime import load

PROBLEMS, BATCH = 1000, 100
TIMED, REPEATS = 60, 2
SEED = 3_000_000
THRESHOLDS = (11.0, 11.0, 11.0)
"""Tuned on other problems of the same kind; the published 7.5, 5, 2.5 are for other logits."""

PUBLISHED = (7.5, 5.0, 2.5)


def commits() -> dict[str, Any]:
    """Base loop and early commits on the same held-out problems."""
    torch.set_num_threads(1)
    texts = draw_texts(PROBLEMS, random.Random(SEED), held_out=True)
    prompts = texts[:, :PROMPT_TOKENS].numpy()
    base = long_sums_program()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, thresholds in (("base", None), ("tuned", THRESHOLDS), ("published", PUBLISHED)):
            program = base
            if thresholds is not None:
                item = CommitEarly(
                    thresholds, answer_start=SUM_START, answer_length=ANSWER_TOKENS - SUM_START
                )
                program = item.rewrite(base).program
            path = program.export(Path(folder) / name)
            with load(path, threads=1) as session:
                found[name] = _measured(session, prompts)
            if name != "published":
                found[name]["pytorch_seconds"] = _seconds(program, prompts)
    base_found, tuned = found["base"], found["tuned"]
    ratio = base_found["seconds"] / tuned["seconds"]
    eager = base_found["pytorch_seconds"] / tuned["pytorch_seconds"]
    return {
        "prophet_calls_ratio": base_found["calls"] / tuned["calls"],
        "prophet_accuracy_drop": base_found["right"] - tuned["right"],
        "prophet_time_ratio": ratio,
        "prophet_time_ratio_pytorch": eager,
        "prophet_onnx_against_pytorch": ratio / eager,
        "prophet_thresholds": list(THRESHOLDS),
        "commits": found,
    }


def _measured(session: Any, prompts: Any) -> dict[str, float]:
    right, calls = 0, 0.0
    for start in range(0, PROBLEMS, BATCH):
        part = prompts[start : start + BATCH]
        results = session(input_ids=part)
        calls += float(results["calls"].sum())
        pairs = zip(part.tolist(), results["tokens"].tolist(), strict=True)
        right += sum(is_correct(prompt, answer) for prompt, answer in pairs)
    return {
        "right": right / PROBLEMS,
        "calls": calls / PROBLEMS,
        "seconds": _seconds(session, prompts),
    }


def _seconds(model: Any, prompts: Any) -> float:
    """For one problem, asked one at a time: a batch goes on until its last one commits."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        for number in range(TIMED):
            model(input_ids=prompts[number : number + 1])
        best = min(best, (time.perf_counter() - start) / TIMED)
    return best

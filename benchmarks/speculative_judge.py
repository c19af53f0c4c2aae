"""A judge on the zoo's arithmetic: how much more of a draft is kept, and are the answers right?"""

import random

import numpy as np
import torch
from parts import Figures
from speculative_timing import Sessions, speedup, with_draft

from optimize.capture.from_decoder import Parts, capture_decoder
from optimize.ir.decode import DecodeLoop
from optimize.passes.drafts.catalog import register_draft
from optimize.recipes.zoo.arithmetic import load_arithmetic, load_arithmetic_draft
from optimize.recipes.zoo.arithmetic_data import (
    END,
    LONGEST_ANSWER,
    PROMPT_TOKENS,
    draw_problems,
    is_correct,
)
from optimize.recipes.zoo.drafts import FILES

PROBLEMS, BATCH, LENGTH, SEED, TIMED = 1000, 50, 12, 11, 40


def judge() -> Figures:
    """The same draft, kept by the target alone and by target or judge."""
    torch.set_num_threads(1)
    loop = DecodeLoop(PROMPT_TOKENS, LONGEST_ANSWER, stop_tokens=(END,), pad_token=END)
    register_draft("worker", capture_decoder(Parts(load_arithmetic_draft()), loop))
    program = capture_decoder(Parts(load_arithmetic()), loop)
    model = {"draft": "model", "source": "worker", "draft_length": LENGTH}
    path = str(FILES["arithmetic-judge"])
    programs = {
        "plain": program,
        "exact": with_draft(program, model),
        "judge": with_draft(program, {**model, "verifier": "judge", "judge": path, "lossy": True}),
    }
    problems = draw_problems(PROBLEMS, random.Random(SEED), held_out=True)
    prompts = np.array([problem.prompt for problem in problems])
    right = dict.fromkeys(programs, 0)
    with Sessions(programs, 1) as sessions:
        ways = sessions.ways()
        for first in range(0, PROBLEMS, BATCH):
            batch = prompts[first : first + BATCH]
            for name, way in ways.items():
                answers = way(batch, 0).tolist()
                pairs = zip(batch.tolist(), answers, strict=True)
                right[name] += sum(is_correct(prompt, answer) for prompt, answer in pairs)
        kept = {name: sessions.kept(name)["tokens_per_call"] for name in ("exact", "judge")}
        one = [prompts[number : number + 1] for number in range(TIMED)]
        seconds = _seconds_per_answer(ways, one)
    accuracy = {name: count / PROBLEMS for name, count in right.items()}
    gain = (kept["judge"] - 1) / (kept["exact"] - 1)
    return {
        "judge_accepted_gain": gain,
        "judge_accuracy_drop": accuracy["plain"] - accuracy["judge"],
        "judge_accuracy": accuracy["judge"],
        "exact_accuracy": accuracy["exact"],
        "judge_tokens_per_call": kept["judge"],
        "exact_tokens_per_call": kept["exact"],
        "judge_speedup": speedup(seconds, "judge", "plain"),
        "judge_exact_speedup": speedup(seconds, "exact", "plain"),
        "judge_problems": PROBLEMS,
        "judge_draft_length": LENGTH,
    }


def _seconds_per_answer(ways: object, prompts: list[np.ndarray]) -> dict[str, list[float]]:  # type: ignore[type-arg]
    """Answers differ in length, and what a user waits for is the whole one."""
    import time

    assert isinstance(ways, dict)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for prompt in prompts:
        for name, way in ways.items():
            start = time.perf_counter()
            way(prompt, 0)
            seconds[name].append(time.perf_counter() - start)
    return seconds

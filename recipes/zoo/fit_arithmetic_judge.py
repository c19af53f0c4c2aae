"""Fits the judge of the arithmetic model: which tokens of a draft are right though unexpected.

    python -m optimize.recipes.zoo.fit_arithmetic_judge --out arithmetic_judge.safetensors

The draft answers questions in its own words, and the task's program marks the first mistake of
each answer: what stands before it is right, the mistake itself is wrong, what follows has no label.
So the head learns from text as it will judge it. Source: Bachmann et al. (2025), section 3.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from optimize.passes.drafts.chimera import target_fingerprint
from optimize.passes.drafts.judge_head import save_judge
from optimize.recipes.fit.judge import Examples, JudgeFit, fit_judge
from optimize.recipes.fit.judge_mining import Judged, judged_features, marked_answer
from optimize.recipes.fit.target_states import generate_text, record_states, target_tables
from optimize.recipes.zoo.arithmetic import load_arithmetic, load_arithmetic_draft
from optimize.recipes.zoo.arithmetic_data import (
    END,
    LONGEST_ANSWER,
    draw_problems,
    first_mistake,
)

PATH = Path(__file__).with_name("arithmetic_judge.safetensors")
QUESTIONS = 1500
ERROR_RECALL = 0.995
"""Share of mistakes that must be rejected: a single one spoils an answer of some forty tokens."""
TEMPERATURES = (0.0, 1.0)
"""Of the draft's answers: its likeliest ones, and drawn ones, which hold more mistakes."""


def judged_answers(draft: nn.Module, count: int, seed: int = 0) -> list[Judged]:
    """Answers of the draft with their labels; of each question one per temperature."""
    problems = draw_problems(count, random.Random(seed), held_out=False)
    prompts = torch.tensor([problem.prompt for problem in problems])
    judged = []
    for temperature in TEMPERATURES:
        made = generate_text(draft, prompts, LONGEST_ANSWER, temperature, seed=seed)
        for number, row in enumerate(made[:, prompts.shape[1] :].tolist()):
            answer = row[: row.index(END)] if END in row else row
            prompt = list(problems[number].prompt)
            mistake = first_mistake(prompt, answer)
            judged.append(marked_answer(number, prompt, answer, mistake))
    return [item for item in judged if item.positions]


def examples_of(target: nn.Module, judged: Sequence[Judged]) -> Examples:
    """The target's states at the judged tokens, and their labels."""

    def states(sequences: Sequence[list[int]]) -> list[torch.Tensor]:
        longest = max(map(len, sequences))
        # Attention is causal: what is padded behind a sequence changes nothing in it.
        padded = torch.tensor([[*item, *[END] * (longest - len(item))] for item in sequences])
        hidden = record_states(target, padded, dtype=torch.float32).hidden
        return [rows[: len(item)] for rows, item in zip(hidden, sequences, strict=True)]

    return judged_features(judged, states)


def fitted_judge(examples: Examples, target: nn.Module) -> JudgeFit:
    """The head for this target."""
    tables = target_tables(target)
    fingerprint = target_fingerprint(tables.embedding.weight, tables.last.weight)
    return fit_judge(examples, fingerprint, error_recall=ERROR_RECALL, held_out_share=0.2)


def main() -> None:
    """Fits and writes the head, and the record beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PATH)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    target, draft = load_arithmetic(), load_arithmetic_draft()
    examples = examples_of(target, judged_answers(draft, QUESTIONS))
    fit = fitted_judge(examples, target)
    save_judge(fit.head, arguments.out)
    record = {
        "questions": QUESTIONS,
        "temperatures": TEMPERATURES,
        "tokens": len(examples.correct),
        "mistakes": int((~examples.correct).sum()),
        "threshold": fit.head.threshold,
        "inverse_penalty": fit.inverse_penalty,
        "auc": fit.auc,
        "error_recall": fit.error_recall,
        "kept_share": fit.kept_share,
        "cpu_seconds": time.process_time() - start,
        "sha256": hashlib.sha256(arguments.out.read_bytes()).hexdigest(),
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()

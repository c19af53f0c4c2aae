"""Trains the two models that work out sums on one CPU core and writes weights and metrics.

    python -m optimize.recipes.zoo.train_arithmetic --out recipes/zoo

First the target, then the draft. Every problem is new; the loss is that of the answer's tokens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from optimize.recipes.zoo.arithmetic import (
    DRAFT_WEIGHTS_PATH,
    WEIGHTS_PATH,
    new_arithmetic,
    new_arithmetic_draft,
)
from optimize.recipes.zoo.arithmetic_data import (
    DRAFT_STYLE,
    END,
    LONGEST_ANSWER,
    PROMPT_TOKENS,
    TARGET_STYLE,
    Problem,
    Style,
    draw_problems,
    worked_out,
)
from optimize.recipes.zoo.language_model_judge import arithmetic_score
from optimize.recipes.zoo.rotary_block import start_small
from optimize.recipes.zoo.rotary_language_model import RotaryLanguageModel
from optimize.recipes.zoo.training import RunOptions, options_of_command_line, run_training

UNSCORED = -100
"""Label of the tokens that the loss leaves out."""

CHECK_SEED = 1_000_000


@dataclass(frozen=True)
class ArithmeticOptions(RunOptions):
    """Options of a training run.

    Attributes:
        draft_steps: optimizer steps of the draft; few, it is to make mistakes.
        check_problems: held-out problems of a quality check.
    """

    steps: int = 500
    batch_size: int = 64
    average_decay: float = 0.99
    other_rate: float = 2e-3
    check_every: int = 250
    draft_steps: int = 440
    check_problems: int = 100


def texts_and_labels(
    problems: list[Problem], style: Style, source: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts with answers, and the next token after each of their tokens.

    Returns:
        Texts and labels, [B, S] each, int64, S the same always; labels are `UNSCORED` before the
        answer begins and after it ended.
    """
    length = PROMPT_TOKENS + LONGEST_ANSWER
    texts = torch.full((len(problems), length), END)
    labels = torch.full((len(problems), length), UNSCORED)
    for row, problem in enumerate(problems):
        answer = torch.tensor(worked_out(problem, style, source))
        texts[row, :PROMPT_TOKENS] = torch.tensor(problem.prompt)
        texts[row, PROMPT_TOKENS : PROMPT_TOKENS + len(answer)] = answer
        labels[row, PROMPT_TOKENS - 1 : PROMPT_TOKENS - 1 + len(answer)] = answer
    longest = int((labels != UNSCORED).nonzero()[:, 1].max()) + 1
    return texts[:, :longest], labels[:, :longest]


def train(
    model: RotaryLanguageModel, style: Style, options: ArithmeticOptions, weights: Path
) -> None:
    """Trains a model to word its workings in a style; writes weights and a record beside them."""
    start_small(model.embed, model.blocks)
    source = random.Random(options.seed)
    held_out = draw_problems(options.check_problems, random.Random(CHECK_SEED), held_out=True)

    def loss_of_batch() -> torch.Tensor:
        problems = draw_problems(options.batch_size, source, held_out=False)
        texts, labels = texts_and_labels(problems, style, source)
        # The mathematical kernel is faster than the other on a CPU, backward included.
        kernel = sdpa_kernel(SDPBackend.MATH)
        with torch.autocast("cpu", torch.bfloat16, options.bfloat16), kernel:
            logits = model.next_token_logits(texts)
        return F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=UNSCORED
        )

    def check(averaged: RotaryLanguageModel) -> dict[str, float]:
        return {"right": arithmetic_score(averaged, held_out).value}

    run_training(model, loss_of_batch, check, options, weights, dtype=torch.float16)


def main() -> None:
    """Trains with the options of the command line."""
    description = "Trains two models that work out sums on one CPU core."
    options, out = options_of_command_line(ArithmeticOptions(), description)
    torch.manual_seed(options.seed)
    train(new_arithmetic(), TARGET_STYLE, options, out / WEIGHTS_PATH.name)
    torch.manual_seed(options.seed)
    options = replace(options, steps=options.draft_steps)
    train(new_arithmetic_draft(), DRAFT_STYLE, options, out / DRAFT_WEIGHTS_PATH.name)


if __name__ == "__main__":
    main()

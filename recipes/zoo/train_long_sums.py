"""Trains the model that adds long numbers on one CPU core and writes its weights and metrics.

    python -m optimize.recipes.zoo.train_long_sums --out recipes/zoo

Every problem is new; the loss is the bound on the negative log-likelihood of the answers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch

from optimize.recipes.zoo.long_sums import WEIGHTS_PATH, new_long_sums
from optimize.recipes.zoo.long_sums_data import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    SUM_START,
    draw_texts,
)
from optimize.recipes.zoo.masked_language_model import (
    MaskedLanguageModel,
    masked_text_loss,
)
from optimize.recipes.zoo.rotary_block import start_small
from optimize.recipes.zoo.training import (
    RunOptions,
    options_of_command_line,
    run_training,
    stratified_uniform,
)

CHECK_SEED = 1_000_000


@dataclass(frozen=True)
class LongSumsOptions(RunOptions):
    """Options of a training run.

    Attributes:
        check_problems: held-out problems of a quality check.
    """

    steps: int = 4000
    batch_size: int = 64
    other_rate: float = 2e-3
    average_decay: float = 0.995
    check_every: int = 400
    check_problems: int = 200


@torch.no_grad()
def share_right(model: MaskedLanguageModel, texts: torch.Tensor) -> float:
    """Share of problems whose sum is right where the likeliest token is unmasked at each call."""
    state = texts.clone()
    state[:, PROMPT_TOKENS:] = model.mask_id
    for _ in range(ANSWER_TOKENS):
        best, tokens = model(state).softmax(-1).max(-1)
        best = best.masked_fill(state != model.mask_id, -1.0)
        place = best.argmax(-1, keepdim=True)
        state.scatter_(1, place, tokens.gather(1, place))
    first = PROMPT_TOKENS + SUM_START
    return float((state[:, first:] == texts[:, first:]).all(-1).float().mean())


def train(model: MaskedLanguageModel, options: LongSumsOptions, out: Path) -> None:
    """Trains on random sums; writes `long_sums.safetensors` and `.json` to `out`."""
    start_small(model.embed, model.blocks)
    source = random.Random(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    held_out = draw_texts(options.check_problems, random.Random(CHECK_SEED), held_out=True)

    def loss_of_batch() -> torch.Tensor:
        texts = draw_texts(options.batch_size, source, held_out=False)
        shares = stratified_uniform(options.batch_size, generator)
        counts = (shares * ANSWER_TOKENS).long() + 1
        return masked_text_loss(model, texts, counts, generator, PROMPT_TOKENS, options.bfloat16)

    def check(averaged: MaskedLanguageModel) -> dict[str, float]:
        return {"right": share_right(averaged, held_out)}

    run_training(model, loss_of_batch, check, options, out / WEIGHTS_PATH.name, dtype=torch.float16)


def main() -> None:
    """Trains with the options of the command line."""
    description = "Trains the model that adds long numbers on one CPU core."
    options, out = options_of_command_line(LongSumsOptions(), description)
    torch.manual_seed(options.seed)
    train(new_long_sums(), options, out)


if __name__ == "__main__":
    main()

"""Trains the masked-diffusion language model of Shakespeare on one CPU core.

    python -m optimize.recipes.zoo.train_masked_shakespeare --out recipes/zoo

Embedding and output matrix start from those of zoo:shakespeare, which has the same tokens. The loss
is the bound on the negative log-likelihood; how many tokens of a text are masked is drawn evenly,
one draw from each of as many cells as a batch has texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from optimize.recipes.zoo.language_model_judge import windows_of
from optimize.recipes.zoo.masked_language_model import (
    MaskedLanguageModel,
    masked_text_loss,
)
from optimize.recipes.zoo.masked_shakespeare import LENGTH, WEIGHTS_PATH, new_masked_shakespeare
from optimize.recipes.zoo.rotary_block import Block, plain_attention, start_small
from optimize.recipes.zoo.shakespeare import load_shakespeare
from optimize.recipes.zoo.shakespeare_data import VOCABULARY, ShakespeareData, load_shakespeare_data
from optimize.recipes.zoo.train_shakespeare import windows
from optimize.recipes.zoo.training import (
    RunOptions,
    options_of_command_line,
    run_training,
    stratified_uniform,
)


@dataclass(frozen=True)
class MaskedShakespeareOptions(RunOptions):
    """Options of a training run.

    Attributes:
        context: tokens of a window.
        compiled: compile the blocks.
        check_windows: held-out windows of a quality check.
    """

    steps: int = 4400
    batch_size: int = 16
    other_rate: float = 2e-3
    average_decay: float = 0.995
    context: int = LENGTH
    compiled: bool = True
    check_windows: int = 64
    check_every: int = 400


def masked_counts(count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """How many of `length` tokens are masked, [count], int64, evenly from 1 to `length`."""
    return (stratified_uniform(count, generator) * length).long() + 1


@torch.no_grad()
def bound(model: MaskedLanguageModel, texts: torch.Tensor, draws: int = 8, seed: int = 1) -> float:
    """The bound on the negative log-likelihood in nats per token, of texts [B, L].

    Args:
        draws: of the masks of every text.
        seed: of these.
    """
    generator = torch.Generator().manual_seed(seed)
    losses = [
        masked_text_loss(
            model, texts, masked_counts(len(texts), texts.shape[1], generator), generator
        )
        for _ in range(draws)
    ]
    return float(torch.stack(losses).mean())


def train(
    model: MaskedLanguageModel,
    data: ShakespeareData,
    options: MaskedShakespeareOptions,
    out: Path,
) -> None:
    """Trains on the train works; writes `masked_shakespeare.safetensors` and `.json` to `out`."""
    generator = torch.Generator().manual_seed(options.seed)
    start_small(model.embed, model.blocks)
    teacher = load_shakespeare()
    with torch.no_grad():
        model.embed.weight[:VOCABULARY] = teacher.embed.weight
        model.head.weight.copy_(teacher.head.weight)
    if options.compiled:
        for block in model.blocks:
            assert isinstance(block, Block)
            block.attend = plain_attention
            block.compile(dynamic=False)
    held_out = windows_of(data.held_out, options.check_windows, options.context)

    def loss_of_batch() -> torch.Tensor:
        texts = windows(data.train, options.batch_size, options.context, generator)
        counts = masked_counts(options.batch_size, options.context, generator)
        return masked_text_loss(model, texts, counts, generator, bfloat16=options.bfloat16)

    def check(averaged: MaskedLanguageModel) -> dict[str, float]:
        with torch.compiler.set_stance("force_eager"):
            return {"bound_nats_per_token": bound(averaged, held_out)}

    weights = out / WEIGHTS_PATH.name
    run_training(model, loss_of_batch, check, options, weights, dtype=torch.float16)


def main() -> None:
    """Trains with the options of the command line."""
    description = "Trains the masked-diffusion language model of Shakespeare on one CPU core."
    options, out = options_of_command_line(MaskedShakespeareOptions(), description)
    torch.manual_seed(options.seed)
    train(new_masked_shakespeare(), load_shakespeare_data(), options, out)


if __name__ == "__main__":
    main()

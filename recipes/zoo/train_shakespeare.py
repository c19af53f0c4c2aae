"""Trains the Shakespeare language model on one CPU core and writes its weights and metrics.

    python -m optimize.recipes.zoo.train_shakespeare --out recipes/zoo
    python -m optimize.recipes.zoo.train_shakespeare --steps 150 --start shakespeare.safetensors

The second command goes on from weights of a run that was stopped: its rates fall from the start.

The loss is that of the next token in random windows of the train works. Every sixth batch has fewer
and longer windows, so that the model has seen distances up to its longest sequence.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from optimize.recipes.zoo.language_model_judge import text_score, windows_of
from optimize.recipes.zoo.rotary_block import start_small
from optimize.recipes.zoo.rotary_language_model import RotaryLanguageModel
from optimize.recipes.zoo.shakespeare import WEIGHTS_PATH, new_shakespeare
from optimize.recipes.zoo.shakespeare_data import (
    ShakespeareData,
    byte_counts,
    load_shakespeare_data,
)
from optimize.recipes.zoo.training import RunOptions, options_of_command_line, run_training

CHECK_CONTEXT = 256
"""Tokens of a held-out window that are foretold; the first of them sees one token."""


@dataclass(frozen=True)
class ShakespeareOptions(RunOptions):
    """Options of a training run.

    Attributes:
        context: tokens of a window.
        long_context: tokens of the windows of a long batch, which has as many tokens.
        long_every: steps from one long batch to the next.
        start: weights to go on from; new ones where not given.
        compiled: compile the blocks, a third faster after a minute.
        check_windows: held-out windows of a quality check.
    """

    steps: int = 1500
    batch_size: int = 32
    other_rate: float = 2e-3
    average_decay: float = 0.99
    context: int = 128
    long_context: int = 512
    long_every: int = 6
    start: str = ""
    compiled: bool = True
    check_windows: int = 64
    check_every: int = 125


def windows(
    tokens: torch.Tensor, count: int, length: int, generator: torch.Generator
) -> torch.Tensor:
    """Random windows of a text, [count, length], int64."""
    starts = torch.randint(len(tokens) - length + 1, (count, 1), generator=generator)
    return tokens[starts + torch.arange(length)]


def next_token_loss(
    model: RotaryLanguageModel, texts: torch.Tensor, bfloat16: bool
) -> torch.Tensor:
    """Mean cross-entropy of every token of [B, S + 1] but the first, a scalar."""
    with torch.autocast("cpu", torch.bfloat16, bfloat16):
        logits = model.next_token_logits(texts[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), texts[:, 1:].flatten())


def train(
    model: RotaryLanguageModel, data: ShakespeareData, options: ShakespeareOptions, out: Path
) -> None:
    """Trains on the train works; writes `shakespeare.safetensors` and `.json` to `out`."""
    generator = torch.Generator().manual_seed(options.seed)
    if options.start:
        model.load_state_dict(load_file(options.start))
    else:
        start_small(model.embed, model.blocks)
    if options.compiled:
        for block in model.blocks:
            block.compile(dynamic=False)
    held_out = windows_of(data.held_out, options.check_windows, CHECK_CONTEXT + 1)
    sizes = byte_counts()
    drawn = 0

    def loss_of_batch() -> torch.Tensor:
        nonlocal drawn
        drawn += 1
        length = options.context if drawn % options.long_every else options.long_context
        count = options.batch_size * options.context // length
        texts = windows(data.train, count, length + 1, generator)
        return next_token_loss(model, texts, options.bfloat16)

    def check(averaged: RotaryLanguageModel) -> dict[str, float]:
        with torch.compiler.set_stance("force_eager"):
            return asdict(text_score(averaged, held_out, sizes))

    weights = out / WEIGHTS_PATH.name
    run_training(model, loss_of_batch, check, options, weights, dtype=torch.float16)


def main() -> None:
    """Trains with the options of the command line."""
    description = "Trains the Shakespeare language model on one CPU core."
    options, out = options_of_command_line(ShakespeareOptions(), description, ("start",))
    if options.start:
        options = replace(options, decay_share=1.0)
    torch.manual_seed(options.seed)
    train(new_shakespeare(), load_shakespeare_data(), options, out)


if __name__ == "__main__":
    main()

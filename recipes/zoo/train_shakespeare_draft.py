"""Distils the draft of the Shakespeare model on one CPU core and writes its weights and metrics.

    python -m optimize.recipes.zoo.train_shakespeare_draft --out recipes/zoo

The draft starts with the embedding, the last norm and the output matrix of the target, and learns
the target's distributions over windows of the train works and of texts drawn from the target. Half
of the loss is the cross-entropy with them, half the share of drawn tokens that would be refused.

Source: Zhou et al. (2024), DistillSpec.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from optimize.recipes.zoo.as_llama import sampled
from optimize.recipes.zoo.language_model_judge import agreement, text_score, windows_of
from optimize.recipes.zoo.rotary_block import start_small
from optimize.recipes.zoo.rotary_language_model import RotaryLanguageModel
from optimize.recipes.zoo.shakespeare import (
    DRAFT_WEIGHTS_PATH,
    load_shakespeare,
    new_shakespeare_draft,
)
from optimize.recipes.zoo.shakespeare_data import (
    ShakespeareData,
    byte_counts,
    load_shakespeare_data,
)
from optimize.recipes.zoo.train_shakespeare import CHECK_CONTEXT, windows
from optimize.recipes.zoo.training import RunOptions, options_of_command_line, run_training


@dataclass(frozen=True)
class DistillationOptions(RunOptions):
    """Options of a distillation.

    Attributes:
        context: tokens of a window.
        drawn_texts, drawn_prompt, drawn_tokens: texts drawn from the target, how many tokens of the
            train works each begins with, and how many are drawn.
        drawn_share: share of windows that are of drawn texts, in [0, 1].
        refused_share: share of the loss that is the chance to be refused, in [0, 1].
        compiled: compile the blocks of both.
        check_windows: held-out windows of a quality check.
    """

    steps: int = 800
    batch_size: int = 32
    other_rate: float = 2e-3
    average_decay: float = 0.99
    context: int = 128
    drawn_texts: int = 256
    drawn_prompt: int = 8
    drawn_tokens: int = 240
    drawn_share: float = 0.5
    refused_share: float = 0.5
    compiled: bool = True
    check_windows: int = 64
    check_every: int = 200


def distillation_loss(
    drafted: torch.Tensor, wanted: torch.Tensor, refused_share: float
) -> torch.Tensor:
    """Loss of a draft against a target, a scalar.

    Args:
        drafted, wanted: logits [..., V] of draft and target.
        refused_share: weight of 1 - sum_x min(p(x), q(x)); that of the cross-entropy is the rest.
    """
    log_draft, target = drafted.float().log_softmax(-1), wanted.float().softmax(-1)
    cross_entropy = -(target * log_draft).sum(-1).mean()
    refused = 1 - torch.minimum(log_draft.exp(), target).sum(-1).mean()
    return (1 - refused_share) * cross_entropy + refused_share * refused


def start_like(draft: RotaryLanguageModel, target: RotaryLanguageModel) -> RotaryLanguageModel:
    """Gives the draft the target's embedding, last norm and output matrix."""
    start_small(draft.embed, draft.blocks)
    for name in ("embed", "norm", "head"):
        getattr(draft, name).load_state_dict(getattr(target, name).state_dict())
    return draft


def train(
    draft: RotaryLanguageModel,
    target: RotaryLanguageModel,
    data: ShakespeareData,
    options: DistillationOptions,
    out: Path,
) -> None:
    """Distils the draft; writes `shakespeare_draft.safetensors` and `.json` to `out`."""
    generator = torch.Generator().manual_seed(options.seed)
    start_like(draft, target)
    starts = windows(data.train, options.drawn_texts, options.drawn_prompt, generator)
    drawn = sampled(target, starts, options.drawn_tokens).flatten()
    held_out = windows_of(data.held_out, options.check_windows, CHECK_CONTEXT + 1)
    sizes = byte_counts()
    if options.compiled:
        for block in (*draft.blocks, *target.blocks):
            block.compile(dynamic=False)

    def loss_of_batch() -> torch.Tensor:
        count = round(options.drawn_share * options.batch_size)
        texts = torch.cat(
            [
                windows(drawn, count, options.context, generator),
                windows(data.train, options.batch_size - count, options.context, generator),
            ]
        )
        with torch.autocast("cpu", torch.bfloat16, options.bfloat16):
            with torch.no_grad():
                wanted = target.next_token_logits(texts)
            drafted = draft.next_token_logits(texts)
        return distillation_loss(drafted, wanted, options.refused_share)

    def check(averaged: RotaryLanguageModel) -> dict[str, float]:
        with torch.compiler.set_stance("force_eager"):
            score = text_score(averaged, held_out, sizes)
            return {**asdict(score), **asdict(agreement(averaged, target, held_out[:, :-1]))}

    weights = out / DRAFT_WEIGHTS_PATH.name
    run_training(draft, loss_of_batch, check, options, weights, dtype=torch.float16)


def main() -> None:
    """Distils with the options of the command line."""
    description = "Distils the draft of the Shakespeare model on one CPU core."
    options, out = options_of_command_line(DistillationOptions(), description)
    torch.manual_seed(options.seed)
    train(new_shakespeare_draft(), load_shakespeare(), load_shakespeare_data(), options, out)


if __name__ == "__main__":
    main()

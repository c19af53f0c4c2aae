"""Trains the digit finder on one CPU core and writes its weights and metrics.

    python -m optimize.recipes.zoo.train_find_the_digit --out recipes/zoo

Every scene is new and is asked about once: where a digit is, or which is where. Beside the answer
the model learns, at some depths, which digit covers each visual token and whether the
question is about it: answers alone teach it nothing for long.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from optimize.recipes.zoo.digits_data import DigitsData, load_digits_data
from optimize.recipes.zoo.find_the_digit import FindTheDigit, prefix_mask
from optimize.recipes.zoo.find_the_digit_data import (
    ANSWER_TOKENS,
    CELLS,
    NO_DIGIT,
    Scenes,
    draw_scenes,
    held_out_scenes,
    localization,
    recognition,
)
from optimize.recipes.zoo.find_the_digit_judge import judge_answers
from optimize.recipes.zoo.training import RunOptions, options_of_command_line, run_training


@dataclass(frozen=True)
class FinderOptions(RunOptions):
    """Options of a training run.

    Attributes:
        localization_share: share of questions that ask where, in [0, 1].
        covering_weight: of the loss on visual tokens; that of the answer has weight 1.
        covering_depths: blocks after which visual tokens are asked for the digit that covers them.
        asked_depths: blocks after which visual tokens are asked whether the question is about them.
        asked_weight: of that loss.
        answer_depths: blocks after which the answer is asked for, each with weight 1.
        digit_weight: weight of a token of a digit against one of none.
        positive_weight: weight of a visual token that is asked about against one that is not.
        compiled: compile the blocks, a quarter faster after half a minute.
        check_samples: held-out scenes of a quality check.
    """

    steps: int = 1500
    localization_share: float = 0.6
    covering_weight: float = 1.0
    covering_depths: tuple[int, ...] = (3, 8, 16)
    asked_depths: tuple[int, ...] = (5, 8)
    asked_weight: float = 1.0
    answer_depths: tuple[int, ...] = (8, 16)
    digit_weight: float = 2.0
    positive_weight: float = 10.0
    compiled: bool = True
    check_samples: int = 200
    check_every: int = 125


def finder_loss(model: FindTheDigit, scenes: Scenes, options: FinderOptions) -> torch.Tensor:
    """Cross-entropy of the answers plus that of what covers the visual tokens, a scalar."""
    find, read = localization(scenes), recognition(scenes)
    where = (torch.arange(len(scenes)) < options.localization_share * len(scenes))[:, None]
    prompts = torch.where(where, find.prompts, read.prompts)
    answers = torch.where(where, find.answers, read.answers)
    text = torch.cat([prompts, answers[:, :-1]], dim=1)
    decoder = model.decoder
    total = text.shape[1] + decoder.image_tokens
    mask = prefix_mask(1, total - ANSWER_TOKENS + 1, total)
    positions = decoder.prompt_positions(text.shape[1])
    # The mathematical kernel is twice as fast as the other on a CPU, backward included.
    with torch.autocast("cpu", torch.bfloat16, options.bfloat16), sdpa_kernel(SDPBackend.MATH):
        states = decoder.layers(text, positions, mask, model.vision(scenes.pixels))
        image = slice(decoder.image_offset, decoder.image_offset + decoder.image_tokens)
        logits = [
            decoder.head(decoder.norm(states[depth][:, -ANSWER_TOKENS:]))
            for depth in options.answer_depths
        ]
        covers = [
            model.covering(decoder.norm(states[d][:, image])) for d in options.covering_depths
        ]
        flags = [model.asked(decoder.norm(states[d][:, image])) for d in options.asked_depths]
    weights = torch.full((NO_DIGIT + 1,), options.digit_weight)
    weights[NO_DIGIT] = 1
    tokens = model.vision.grid_size // CELLS
    labels = covered(scenes.labels, tokens).flatten()
    asked = covered(F.one_hot(scenes.asked, CELLS**2), tokens).flatten().float()
    positive = torch.tensor(options.positive_weight)
    named = [F.cross_entropy(each.flatten(0, 1).float(), answers.flatten()) for each in logits]
    seen = [F.cross_entropy(each.flatten(0, 1).float(), labels, weights) for each in covers]
    picked = [
        F.binary_cross_entropy_with_logits(each.flatten().float(), asked, pos_weight=positive)
        for each in flags
    ]
    visual = options.covering_weight * torch.stack(seen).mean()
    return torch.stack(named).sum() + visual + options.asked_weight * torch.stack(picked).mean()


def covered(labels: torch.Tensor, tokens: int) -> torch.Tensor:
    """Labels of cells [B, 36] as those of visual tokens [B, N], `tokens` by `tokens` to a cell."""
    grid = labels.reshape(-1, CELLS, CELLS)
    return grid.repeat_interleave(tokens, 1).repeat_interleave(tokens, 2).flatten(1)


def train(model: FindTheDigit, data: DigitsData, options: FinderOptions, out: Path) -> None:
    """Trains on the train split; writes `find_the_digit.safetensors` and `.json` to `out`."""
    generator = torch.Generator().manual_seed(options.seed)
    if options.compiled:
        for block in model.decoder.blocks:
            block.compile()
    held_out = held_out_scenes(data.held_out, first=1_000_000, count=options.check_samples)

    def loss_of_batch() -> torch.Tensor:
        scenes = draw_scenes(data.train, options.batch_size, generator)
        return finder_loss(model, scenes, options)

    def check(averaged: FindTheDigit) -> dict[str, float]:
        scores = judge_answers(averaged, held_out)
        return {name: score.value for name, score in scores.items()}

    run_training(model, loss_of_batch, check, options, out / "find_the_digit.safetensors")


def main() -> None:
    """Trains with the options of the command line."""
    description = "Trains the digit finder on one CPU core."
    options, out = options_of_command_line(FinderOptions(), description)
    torch.manual_seed(options.seed)
    train(FindTheDigit(), load_digits_data(), options, out)


if __name__ == "__main__":
    main()

"""Judges answers about scenes: is the place of a digit found, is the digit at a place read?

An answer is right when its tokens are: row and column both, or the digit. There is no credit for a
neighbouring cell.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from optimize.measure.quality import Interval
from optimize.recipes.zoo.crystal_match import wilson_interval
from optimize.recipes.zoo.find_the_digit_data import Questions, Scenes, localization, recognition

LOCALIZATION_TOKENS = 2
RECOGNITION_TOKENS = 1


def localization_score(answers: torch.Tensor, scenes: Scenes) -> Interval:
    """Share of scenes whose row and column are both right, with a 95 % interval.

    Args:
        answers: [B, 2], int64, the tokens generated after the prompts of `localization`.
        scenes: of the questions.
    """
    return _share_right(answers, localization(scenes), LOCALIZATION_TOKENS)


def recognition_score(answers: torch.Tensor, scenes: Scenes) -> Interval:
    """Share of scenes whose digit is right, with a 95 % interval.

    Args:
        answers: [B, 1] or more, int64, the tokens generated after the prompts of `recognition`.
        scenes: of the questions.
    """
    return _share_right(answers, recognition(scenes), RECOGNITION_TOKENS)


def judge_answers(
    model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], scenes: Scenes, batch: int = 100
) -> dict[str, Interval]:
    """Both scores of a model that gives logits [B, S, V] for pixels and text, decoded greedily."""
    found, read = localization(scenes), recognition(scenes)
    where = greedy(model, scenes.pixels, found.prompts, LOCALIZATION_TOKENS, batch)
    which = greedy(model, scenes.pixels, read.prompts, RECOGNITION_TOKENS, batch)
    return {
        "localization": localization_score(where, scenes),
        "recognition": recognition_score(which, scenes),
    }


@torch.no_grad()
def greedy(
    model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    prompts: torch.Tensor,
    count: int,
    batch: int = 100,
) -> torch.Tensor:
    """The likeliest tokens, one after the other.

    Args:
        model: logits [B, S, V] of pixels [B, 1, H, W] and text [B, T].
        pixels: [B, 1, H, W].
        prompts: [B, T], int64.
        count: tokens to generate.
        batch: scenes that go through the model together.
    Returns:
        [B, count], int64.
    """
    answers = []
    for start in range(0, len(prompts), batch):
        images, text = pixels[start : start + batch], prompts[start : start + batch]
        for _ in range(count):
            text = torch.cat([text, model(images, text)[:, -1:].argmax(-1)], dim=1)
        answers.append(text[:, prompts.shape[1] :])
    return torch.cat(answers)


def _share_right(answers: torch.Tensor, questions: Questions, tokens: int) -> Interval:
    if answers.shape[0] != len(questions.answers) or answers.shape[1] < tokens:
        raise ValueError(
            f"find_the_digit: found answers {tuple(answers.shape)}, expected "
            f"({len(questions.answers)}, {tokens}); give the tokens after the prompt, one row a "
            "scene."
        )
    right = (answers[:, :tokens] == questions.answers[:, :tokens]).all(1).double()
    share = float(right.mean())
    return Interval(share, *wilson_interval(share, len(right)))

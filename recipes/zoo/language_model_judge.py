"""Judges language models of the zoo: by what they say greedily, and by the likelihood of a text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from optimize.measure.quality import Interval
from optimize.recipes.zoo.arithmetic_data import END, LONGEST_ANSWER, Problem, is_correct
from optimize.recipes.zoo.crystal_match import wilson_interval
from optimize.recipes.zoo.rotary_language_model import RotaryLanguageModel


@dataclass(frozen=True)
class TextScore:
    """How well a model foretells a text.

    Attributes:
        nats_per_token: mean cross-entropy.
        nats_per_byte: the same by byte of the text, which tokenizers do not change.
    """

    nats_per_token: float
    nats_per_byte: float


@dataclass(frozen=True)
class Agreement:
    """How well a draft foretells a target over a text.

    Attributes:
        acceptance_rate: mean of sum_x min(p(x), q(x)), the chance that a drawn token is accepted.
        same_likeliest: share of places where both have the same likeliest token.
    """

    acceptance_rate: float
    same_likeliest: float


def windows_of(tokens: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """Windows of a text at equal distances, [count, length], int64.

    Raises:
        ValueError: the text is shorter than a window.
    """
    if len(tokens) < length:
        raise ValueError(f"windows_of: found {len(tokens)} tokens, expected at least {length}")
    starts = torch.linspace(0, len(tokens) - length, count).long()
    return tokens[starts[:, None] + torch.arange(length)]


@torch.no_grad()
def text_score(
    model: RotaryLanguageModel, texts: torch.Tensor, byte_counts: torch.Tensor, batch: int = 8
) -> TextScore:
    """Score over every token of texts but the first of each.

    Args:
        model: the model.
        texts: [B, S], int64.
        byte_counts: [V], int64, bytes of each token.
        batch: texts that go through the model together.
    """
    nats = 0.0
    for part in torch.split(texts, batch):
        logits = model.next_token_logits(part[:, :-1]).flatten(0, 1)
        nats += float(F.cross_entropy(logits, part[:, 1:].flatten(), reduction="sum"))
    scored = texts[:, 1:]
    return TextScore(nats / scored.numel(), nats / int(byte_counts[scored].sum()))


@torch.no_grad()
def agreement(
    draft: RotaryLanguageModel, target: RotaryLanguageModel, texts: torch.Tensor, batch: int = 8
) -> Agreement:
    """Agreement after every token of texts [B, S]; `batch` go through the models together."""
    shared, same = 0.0, 0
    for part in torch.split(texts, batch):
        drafted, wanted = draft.next_token_logits(part), target.next_token_logits(part)
        shared += float(torch.minimum(drafted.softmax(-1), wanted.softmax(-1)).sum())
        same += int((drafted.argmax(-1) == wanted.argmax(-1)).sum())
    return Agreement(shared / texts.numel(), same / texts.numel())


@torch.no_grad()
def greedy(
    model: RotaryLanguageModel, prompts: torch.Tensor, count: int, stop: int | None = None
) -> torch.Tensor:
    """The likeliest tokens, one after the other, without a cache.

    Args:
        model: the model.
        prompts: [B, S], int64.
        count: most tokens to generate.
        stop: no more are generated when every answer has this token.
    Returns:
        [B, at most count], int64; what follows `stop` means nothing.
    """
    text = prompts
    for _ in range(count):
        text = torch.cat([text, model.next_token_logits(text)[:, -1:].argmax(-1)], dim=1)
        if stop is not None and bool((text[:, prompts.shape[1] :] == stop).any(1).all()):
            break
    return text[:, prompts.shape[1] :]


def arithmetic_score(model: RotaryLanguageModel, problems: list[Problem]) -> Interval:
    """Share of problems whose greedy answer is right, with a 95 % interval."""
    prompts = torch.tensor([problem.prompt for problem in problems])
    answers = greedy(model, prompts, LONGEST_ANSWER, END).tolist()
    right = [
        is_correct(problem.prompt, answer)
        for problem, answer in zip(problems, answers, strict=True)
    ]
    share = sum(right) / len(right)
    return Interval(share, *wilson_interval(share, len(right)))

"""Finds out by itself which tokens of a draft a judge should accept.

    target's greedy response   a b c d e        the draft would have said x for c
    spliced                    a b x            and the target goes on from there:  a b x f g
    answer still correct       x is unimportant: accepted, and a b x f g is the new response
    answer wrong               x is an error: the old response stays
    then on, behind x, to the next token that the draft would have said differently

All questions move in step, so that the target and the draft see batches.

Source: Garipov et al., "AutoJudge", NeurIPS 2025, arXiv 2504.20039; the labels of answers with a
marked mistake: Bachmann et al., ICLR 2025, arXiv 2501.19309.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from optimize.recipes.fit.judge import Examples

Tokens = list[int]
Complete = Callable[[Sequence[Tokens]], Sequence[Tokens]]
"""Prompts with the beginnings of answers to the greedy tokens that follow each."""
Predict = Callable[[Sequence[Tokens]], Sequence[Tokens]]
"""Sequences to the likeliest next token behind each of their tokens."""
States = Callable[[Sequence[Tokens]], Sequence[torch.Tensor]]
"""Sequences to the target's states behind its final norm, [S, d] each."""
Correct = Callable[[Tokens, Tokens], bool]
"""Whether an answer to a prompt is right."""


@dataclass(frozen=True)
class Judged:
    """A sequence and the tokens of it that have a label.

    Attributes:
        question: its number.
        tokens: prompt and answer.
        positions: of the judged tokens in it.
        correct: the label of each.
    """

    question: int
    tokens: Tokens
    positions: tuple[int, ...]
    correct: tuple[bool, ...]


@dataclass
class _Progress:
    question: int
    prompt: Tokens
    tokens: Tokens
    predicted: Tokens = field(default_factory=list)
    handled: int = 0
    unimportant: list[int] = field(default_factory=list)

    def next_mismatch(self, stop_tokens: frozenset[int]) -> int | None:
        """The first position behind the handled ones that the draft would fill differently."""
        for place in range(self.handled + 1, len(self.tokens)):
            token = self.predicted[place - 1]
            if token != self.tokens[place] and token not in stop_tokens:
                return place
        return None


def mine(
    prompts: Sequence[Tokens],
    complete: Complete,
    draft_argmax: Predict,
    is_correct: Correct,
    stop_tokens: Sequence[int] = (),
) -> list[Judged]:
    """The labelled mismatches of the draft in answers of the target.

    Questions that the target answers wrongly are left out: nothing can be said of their tokens.

    Args:
        prompts: one per question, each of at least one token.
        complete: the target's greedy continuation, with its stop token if there is one.
        draft_argmax: the draft, teacher forced.
        is_correct: of prompt and answer.
        stop_tokens: never judged; a verifier must not let a judge accept them.
    """
    stops = frozenset(stop_tokens)
    found: list[Judged] = []
    running = []
    for question, (prompt, answer) in enumerate(zip(prompts, complete(prompts), strict=True)):
        if is_correct(prompt, list(answer)):
            tokens = [*prompt, *answer]
            running.append(_Progress(question, prompt, tokens, handled=len(prompt) - 1))
    changed = running
    while running:
        _predict(changed, draft_argmax)
        places = [item.next_mismatch(stops) for item in running]
        found += [
            Judged(item.question, item.tokens, tuple(item.unimportant), _all_true(item))
            for item, place in zip(running, places, strict=True)
            if place is None and item.unimportant
        ]
        pairs = [
            (item, place) for item, place in zip(running, places, strict=True) if place is not None
        ]
        spliced = [[*item.tokens[:place], item.predicted[place - 1]] for item, place in pairs]
        endings = complete(spliced) if spliced else []
        changed = []
        for (item, place), start, ending in zip(pairs, spliced, endings, strict=True):
            item.handled = place
            tokens = [*start, *ending]
            if is_correct(item.prompt, tokens[len(item.prompt) :]):
                item.tokens = tokens
                item.unimportant.append(place)
                changed.append(item)
            else:
                found.append(Judged(item.question, start, (place,), (False,)))
        running = [item for item, _ in pairs]
    return found


def marked_answer(
    question: int, prompt: Tokens, answer: Tokens, first_mistake: int | None = None
) -> Judged:
    """The labels of an answer somebody has read: right up to its first mistake, which is wrong.

    What follows a mistake has no label.

    Args:
        question: its number.
        prompt, answer: tokens.
        first_mistake: its index in the answer; None for a correct answer.
    """
    if first_mistake is not None and not 0 <= first_mistake < len(answer):
        raise ValueError(
            f"first_mistake: found {first_mistake}, expected an index in the answer of "
            f"{len(answer)} tokens, or None"
        )
    count = len(answer) if first_mistake is None else first_mistake + 1
    tokens = [*prompt, *answer[:count]]
    positions = tuple(range(len(prompt), len(tokens)))
    return Judged(
        question, tokens, positions, tuple(place != first_mistake for place in range(count))
    )


def judged_features(judged: Sequence[Judged], states: States, batch_size: int = 64) -> Examples:
    """Features and labels, from one teacher-forced run of the target over the sequences.

    Args:
        judged: of `mine` or `marked_answer`; at least one token.
        states: the target.
        batch_size: sequences per call.
    """
    order = sorted(judged, key=lambda item: len(item.tokens))
    features = []
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        for item, rows in zip(part, states([item.tokens for item in part]), strict=True):
            features.append(rows[list(item.positions)].float())
    return Examples(
        torch.cat(features),
        torch.tensor([label for item in order for label in item.correct]),
        torch.tensor([item.question for item in order for _ in item.positions]),
    )


def _predict(changed: Sequence[_Progress], draft_argmax: Predict) -> None:
    if changed:
        made = draft_argmax([item.tokens for item in changed])
        for item, predicted in zip(changed, made, strict=True):
            item.predicted = list(predicted)


def _all_true(item: _Progress) -> tuple[bool, ...]:
    return (True,) * len(item.unimportant)

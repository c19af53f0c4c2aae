"""GVM on the zoo's arithmetic: which questions to ask how often, to train a draft on right answers.

A draft improves on its own answers that the task's program finds right (RAFT). It is right often at
some questions and hardly ever at others. A sample is one drawn answer, accepted if it is right; its
gradient is that of the draft's output layer. A small probe decides the allocation; the variances
are then those of a large one, which had no part in it.
"""

import random
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from parts import Figures
from torch.nn.functional import cross_entropy, one_hot

from optimize.recipes.fit.gvm import (
    allocate,
    head_gradient_norms,
    objective,
    probe_statistics,
    sample_weights,
)
from optimize.recipes.fit.target_states import generate_text, record_states
from optimize.recipes.zoo.arithmetic import load_arithmetic_draft
from optimize.recipes.zoo.arithmetic_data import (
    END,
    LONGEST_ANSWER,
    PROMPT_TOKENS,
    VOCABULARY,
    draw_problems,
    is_correct,
)

QUESTIONS, PROBE, LARGE, PER_QUESTION, SEEDS = 100, 8, 64, 8, 3
TEMPERATURE, STEPS, RATE = 1.0, 60, 0.01


@dataclass(frozen=True)
class Answers:
    """Accepted answers: their questions, states, next tokens and which of these count."""

    questions: NDArray[np.int64]
    hidden: torch.Tensor
    labels: torch.Tensor
    counted: torch.Tensor


def allocation() -> Figures:
    """Variance, and the output layer that it trains, at equal budgets."""
    torch.set_num_threads(1)
    large = _asked(np.full(QUESTIONS, LARGE), seed=100)
    rates = np.bincount(large.questions, minlength=QUESTIONS) / LARGE
    norms = np.array([np.mean(own) if len(own) else 0.0 for own in _norms(large)])
    uniform = np.full(QUESTIONS, PER_QUESTION)
    budget = int(uniform.sum())
    ratios: list[float] = []
    losses: dict[str, list[float]] = {"gvm": [], "uniform": []}
    for seed in range(SEEDS):
        probed = _asked(np.full(QUESTIONS, PROBE), seed)
        probe = probe_statistics(_norms(probed), PROBE)
        counts = allocate(probe.gradient_norms, probe.acceptance_rates, budget, floor=1)
        ratios.append(objective(norms, rates, uniform) / objective(norms, rates, counts))
        for name, numbers in (("gvm", counts), ("uniform", uniform)):
            losses[name].append(_trained_loss(_asked(numbers, 10 + seed), large))
    best = allocate(norms, rates, budget, alpha=0.0)
    known = uniform * (rates > 0)
    return {
        "gvm_variance_ratio": float(np.median(ratios)),
        "gvm_variance_ratio_best_possible": objective(norms, rates, known)
        / objective(norms, rates, best),
        "gvm_head_loss": float(np.mean(losses["gvm"])),
        "uniform_head_loss": float(np.mean(losses["uniform"])),
        "gvm_untrained_loss": _loss(load_arithmetic_draft().head.weight, large, _even(large)),
        "gvm_acceptance_rates": np.quantile(rates, [0, 0.25, 0.5, 0.75, 1]).tolist(),
    }


def _asked(counts: NDArray[np.int64], seed: int) -> Answers:
    """The right ones of as many drawn answers of each question."""
    draft = load_arithmetic_draft()
    problems = draw_problems(QUESTIONS, random.Random(5), held_out=False)
    numbers = np.repeat(np.arange(QUESTIONS), counts)
    prompts = torch.tensor([problems[number].prompt for number in numbers])
    made = generate_text(draft, prompts, LONGEST_ANSWER, TEMPERATURE, seed=seed)
    right = [is_correct(row[:PROMPT_TOKENS], row[PROMPT_TOKENS:]) for row in made.tolist()]
    chosen = torch.tensor(right)
    text = made[chosen]
    hidden = record_states(draft, text, dtype=torch.float32).hidden[:, PROMPT_TOKENS - 1 : -1]
    labels = text[:, PROMPT_TOKENS:]
    ended = torch.cumsum((labels == END).long(), 1) - (labels == END).long()
    return Answers(numbers[chosen.numpy()], hidden, labels, ended == 0)


def _norms(answers: Answers) -> list[list[float]]:
    """Of each question the gradient norms of its accepted answers."""
    weight = load_arithmetic_draft().head.weight.detach()
    missed = (answers.hidden @ weight.T).softmax(-1) - one_hot(answers.labels, VOCABULARY)
    sizes = head_gradient_norms(answers.hidden, missed * answers.counted[..., None])
    found: list[list[float]] = [[] for _ in range(QUESTIONS)]
    for question, size in zip(answers.questions, sizes.tolist(), strict=True):
        found[question].append(size)
    return found


def _even(answers: Answers) -> torch.Tensor:
    """Weights by which every question counts the same, however many answers it has."""
    accepted = np.ones(len(answers.questions), dtype=bool)
    return torch.from_numpy(sample_weights(answers.questions, accepted, QUESTIONS)).float()


def _loss(weight: torch.Tensor, answers: Answers, weights: torch.Tensor) -> float:
    return float(_loss_of(weight, answers, weights).detach())


def _loss_of(weight: torch.Tensor, answers: Answers, weights: torch.Tensor) -> torch.Tensor:
    logits = (answers.hidden @ weight.T).transpose(1, 2)
    each = (cross_entropy(logits, answers.labels, reduction="none") * answers.counted).sum(1)
    return (each * weights).sum() / weights.sum()


def _trained_loss(recorded: Answers, held_out: Answers) -> float:
    """The loss, on answers of another seed, of an output layer trained on the recorded ones."""
    weight = load_arithmetic_draft().head.weight.detach().clone().requires_grad_()
    optimizer, weights = torch.optim.Adam([weight], RATE), _even(recorded)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = _loss_of(weight, recorded, weights)
        torch.autograd.backward(loss)
        optimizer.step()
    return _loss(weight.detach(), held_out, _even(held_out))

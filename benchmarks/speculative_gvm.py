"""GVM on the zoo's arithmetic: which questions to ask the draft how often, to train a judge.

A judge learns most from mistakes, and drafts make many at some questions and hardly any at others.
A sample is one drawn answer of the draft, accepted if it holds a mistake; its gradient is that of a
judge's first step, for which every score is zero. A small probe decides the allocation; variances
are then those of a large one, which had no part in it.
"""

import random

import numpy as np
import torch
from parts import Figures

from optimize.recipes.fit.gvm import allocate, head_gradient_norms, objective, probe_statistics
from optimize.recipes.fit.judge import Examples, area_under_curve, fit_linear
from optimize.recipes.fit.judge_mining import Judged, marked_answer
from optimize.recipes.fit.target_states import generate_text
from optimize.recipes.zoo.arithmetic import load_arithmetic, load_arithmetic_draft
from optimize.recipes.zoo.arithmetic_data import (
    END,
    LONGEST_ANSWER,
    draw_problems,
    first_mistake,
)
from optimize.recipes.zoo.fit_arithmetic_judge import examples_of

QUESTIONS, PROBE, LARGE, PER_QUESTION, SEEDS = 100, 8, 48, 8, 3
TEMPERATURE, PENALTY = 0.7, 0.01


def allocation() -> Figures:
    """Variance and the judge that it trains, at equal budgets."""
    torch.set_num_threads(1)
    large = _asked(np.full(QUESTIONS, LARGE), seed=100)
    rates = np.array([len(item) / LARGE for item in large])
    norms = np.array([np.mean(_norms(item)) if item else 0.0 for item in large])
    held_out = examples_of(load_arithmetic(), [item for own in large for item in own[:4]])
    uniform = np.full(QUESTIONS, PER_QUESTION)
    ratios, areas = [], {"gvm": [], "uniform": []}
    for seed in range(SEEDS):
        probed = _asked(np.full(QUESTIONS, PROBE), seed)
        probe = probe_statistics([_norms(item) for item in probed], PROBE)
        budget = int(uniform.sum())
        counts = allocate(probe.gradient_norms, probe.acceptance_rates, budget, floor=1)
        ratios.append(objective(norms, rates, uniform) / objective(norms, rates, counts))
        for name, numbers in (("gvm", counts), ("uniform", uniform)):
            recorded = [item for own in _asked(numbers, 10 + seed) for item in own]
            areas[name].append(_area(recorded, held_out))
    best = allocate(norms, np.maximum(rates, 1e-9), int(uniform.sum()), floor=1, alpha=0.0)
    return {
        "gvm_variance_ratio": float(np.median(ratios)),
        "gvm_variance_ratio_of_the_best_allocation": objective(norms, rates, uniform)
        / objective(norms, rates, best),
        "gvm_head_auc": float(np.mean(areas["gvm"])),
        "uniform_head_auc": float(np.mean(areas["uniform"])),
        "gvm_mistake_rates": np.quantile(rates, [0, 0.25, 0.5, 0.75, 1]).tolist(),
    }


def _asked(counts: np.ndarray, seed: int) -> list[list[Judged]]:  # type: ignore[type-arg]
    """Of each question the answers that hold a mistake, of as many as were drawn."""
    problems = draw_problems(QUESTIONS, random.Random(5), held_out=False)
    numbers = np.repeat(np.arange(QUESTIONS), counts)
    prompts = torch.tensor([problems[number].prompt for number in numbers])
    made = generate_text(load_arithmetic_draft(), prompts, LONGEST_ANSWER, TEMPERATURE, seed=seed)
    found: list[list[Judged]] = [[] for _ in range(QUESTIONS)]
    for number, row in zip(numbers, made[:, prompts.shape[1] :].tolist(), strict=True):
        answer = row[: row.index(END)] if END in row else row
        prompt = list(problems[number].prompt)
        mistake = first_mistake(prompt, answer)
        if mistake is not None:
            found[number].append(marked_answer(int(number), prompt, answer, mistake))
    return found


def _norms(judged: list[Judged]) -> list[float]:
    """The gradient norm of each answer, of a judge that finds everything as likely as not."""
    if not judged:
        return []
    examples = examples_of(load_arithmetic(), judged)
    sizes = [len(item.positions) for item in judged]
    norms = []
    for features, correct in zip(
        examples.features.split(sizes), examples.correct.split(sizes), strict=True
    ):
        # Both classes weigh the same, as in the loss that is fitted.
        share = torch.where(correct, 1 / correct.sum().clamp(min=1), 1 / (~correct).sum())
        missed = (0.5 - correct.double()) * share
        norms.append(head_gradient_norms(features[None], missed[None, :, None]).item())
    return norms


def _area(recorded: list[Judged], held_out: Examples) -> float:
    weight, bias = fit_linear(examples_of(load_arithmetic(), recorded), PENALTY)
    return area_under_curve(held_out.features.double() @ weight + bias, held_out.correct)

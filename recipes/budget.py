"""Holds results against a quality budget."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optimize.ir.errors import QualityError
from optimize.ir.record import Record
from optimize.recipes.recipe import Budget

AT_MOST = ("relative_error",)
"""Metrics of `Budget` of which less is better; of the others, more."""


def excess(budget: Budget, quality: Mapping[str, float | None]) -> dict[str, float]:
    """Metric of a budget → by how much it is missed; at most 0 where it holds.

    Args:
        budget: the limits.
        quality: metric → value; one that is missing, or NaN, is missed by infinity.
    """
    found = {}
    for name, limit in budget.limits().items():
        value = quality.get(name)
        if value is None or math.isnan(value):
            found[name] = math.inf
        else:
            found[name] = value - limit if name in AT_MOST else limit - value
    return found


def check_budget(name: str, budget: Budget, history: Sequence[Record]) -> None:
    """Checks the result after the last pass against a budget.

    Args:
        name: whose budget it is, for messages.
    Raises:
        QualityError: says which pass cost what.
    """
    applied = [record for record in history if record.declined is None]
    if budget.empty or not applied:
        return
    quality = record_quality(applied[-1])
    missed = [metric for metric, by in excess(budget, quality).items() if by > 0]
    if not missed:
        return
    problems = " and ".join(_problem(metric, quality, budget) for metric in missed)
    costs = "; ".join(_cost(record) for record in applied)
    raise QualityError(
        f"{name}: over the quality budget: found {problems}. {costs}. "
        "Ease the options of the pass that cost most, or the budget"
    )


def record_quality(record: Record) -> dict[str, float | None]:
    """Metric → value after a pass, counted from the program before the first pass."""
    details: Mapping[str, Any] = record.details
    return {
        "relative_error": record.error or 0.0,
        "psnr": details.get("psnr", math.inf),
        "token_match": details.get("token_match"),
    }


def quality_text(metric: str, value: float | None) -> str:
    """A metric with its value and unit: "psnr 30.1 dB"."""
    if value is None:
        return f"no value of {metric}"
    return f"psnr {value:.1f} dB" if metric == "psnr" else f"{metric} {value:.4g}"


def _problem(metric: str, quality: Mapping[str, float | None], budget: Budget) -> str:
    if quality[metric] is None:
        return "no generated tokens, expected some for token_match"
    bound = "at most" if metric in AT_MOST else "at least"
    return f"{quality_text(metric, quality[metric])}, expected {bound} {budget.limits()[metric]:g}"


def _cost(record: Record) -> str:
    found = record_quality(record).items()
    shown = [quality_text(metric, value) for metric, value in found if value is not None]
    return f"after {record.name}: {', '.join(shown)}"

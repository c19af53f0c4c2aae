"""Which attempts are worth having: the Pareto front, and the few of it that are measured."""

import math
from collections.abc import Sequence

from optimize.recipes.budget import AT_MOST, excess
from optimize.recipes.recipe import Budget
from optimize.report.tuning import Attempt


def worth(attempt: Attempt, metric: str) -> float:
    """Its quality, more is better; less than anything where there is none."""
    value = attempt.quality.get(metric)
    if value is None or math.isnan(value):
        return -math.inf
    return -value if metric in AT_MOST else value


def cost(attempt: Attempt) -> float:
    """Its predicted seconds."""
    return math.inf if attempt.predicted_seconds is None else attempt.predicted_seconds


def pareto_front(attempts: Sequence[Attempt], metric: str) -> list[Attempt]:
    """The attempts that no other beats in both seconds and quality, the fastest first."""
    front: list[Attempt] = []
    for item in sorted(attempts, key=lambda item: (cost(item), -worth(item, metric), item.number)):
        if not front or worth(item, metric) > worth(front[-1], metric):
            front.append(item)
    return front


def feasible(attempts: Sequence[Attempt], budget: Budget) -> list[Attempt]:
    """The judged attempts within a budget."""
    return [
        item
        for item in attempts
        if item.state == "judged" and all(by <= 0 for by in excess(budget, item.quality).values())
    ]


def to_measure(attempts: Sequence[Attempt], metric: str, count: int) -> list[Attempt]:
    """The few attempts worth measuring, the fastest first.

    Predictions of programs that the same passes made are wrong alike, those of others are not: so
    the fastest of each set of passes come first, then the front from its fast end.

    Args:
        attempts: all within the budget.
        metric: of the front.
        count: at most so many.
    """
    ordered = sorted(attempts, key=lambda item: (cost(item), -worth(item, metric), item.number))
    by_passes: dict[frozenset[str], Attempt] = {}
    for item in ordered:
        by_passes.setdefault(frozenset(name for entry in item.passes for name in entry), item)
    first = sorted(by_passes.values(), key=cost)[: max(1, count // 2)]
    chosen = {item.number: item for item in first}
    for item in [*pareto_front(attempts, metric), *ordered]:
        if len(chosen) >= count:
            break
        chosen.setdefault(item.number, item)
    return sorted(chosen.values(), key=cost)

"""The Pareto front, the budget, and what is measured of them."""

import math

import numpy as np
import pytest

from optimize.recipes.recipe import Budget
from optimize.recipes.tuning.front import feasible, pareto_front, to_measure
from optimize.report.tuning import Attempt


def attempt(
    number: int, seconds: float, psnr: float | None, passes: tuple[str, ...] = ("a",)
) -> Attempt:
    return Attempt(
        number,
        "judged",
        tuple({name: {}} for name in passes),
        predicted_seconds=seconds,
        quality={"psnr": psnr},
    )


@pytest.mark.parametrize("metric", ["psnr", "relative_error"])
def test_front_is_what_nothing_beats(metric: str) -> None:
    drawn = np.random.default_rng(0)
    attempts = [
        Attempt(
            number,
            "judged",
            predicted_seconds=float(drawn.integers(1, 20)),
            quality={metric: float(drawn.integers(1, 20))},
        )
        for number in range(60)
    ]
    sign = 1 if metric == "psnr" else -1

    def beats(one: Attempt, other: Attempt) -> bool:
        ours = (one.predicted_seconds, -sign * one.quality[metric])  # type: ignore[operator]
        theirs = (other.predicted_seconds, -sign * other.quality[metric])  # type: ignore[operator]
        return ours != theirs and ours[0] <= theirs[0] and ours[1] <= theirs[1]  # type: ignore[operator]

    front = pareto_front(attempts, metric)
    expected = {
        (item.predicted_seconds, item.quality[metric])
        for item in attempts
        if not any(beats(other, item) for other in attempts)
    }
    assert {(item.predicted_seconds, item.quality[metric]) for item in front} == expected
    assert len(front) == len(expected)


def test_equal_results_are_worth_most_and_missing_ones_nothing() -> None:
    front = pareto_front([attempt(0, 1.0, 30.0), attempt(1, 2.0, math.inf)], "psnr")
    assert [item.number for item in front] == [0, 1]
    assert pareto_front([attempt(0, 2.0, 30.0), attempt(1, 1.0, None)], "psnr")[-1].number == 0


def test_within_the_budget() -> None:
    attempts = [attempt(0, 1.0, 29.9), attempt(1, 1.0, 30.0), attempt(2, 1.0, None)]
    pruned = Attempt(3, "pruned", quality={"psnr": 40.0})
    assert [item.number for item in feasible([*attempts, pruned], Budget(psnr=30))] == [1]
    nan = attempt(4, 1.0, math.nan)
    assert feasible([nan], Budget(psnr=30)) == []
    assert feasible([attempts[1]], Budget(psnr=30, token_match=1.0)) == []


def test_measures_the_fastest_of_each_set_of_passes() -> None:
    attempts = [attempt(n, 1.0 + n, 30.0 + n) for n in range(8)]
    slower = attempt(8, 20.0, 31.0, ("a", "b"))
    chosen = [item.number for item in to_measure([*attempts, slower], "psnr", 4)]
    assert chosen == [0, 1, 2, 8]
    assert to_measure([], "psnr", 4) == []

"""Timing in turns, and what a comparison may conclude."""

import time

import pytest

from optimize.ir.errors import QualityError
from optimize.measure.timing import compare, interleaved_seconds


def test_rounds_alternate_their_order_and_warm_up_is_dropped() -> None:
    order: list[str] = []
    told: list[tuple[int, int]] = []
    seconds = interleaved_seconds(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        repeats=2,
        warmup=1,
        progress=lambda done, total: told.append((done, total)),
    )
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_slower_function_takes_longer() -> None:
    seconds = interleaved_seconds({"a": lambda: time.sleep(0.002), "b": lambda: None}, 5)
    assert min(seconds["a"]) > max(seconds["b"])


def test_another_clock_leaves_out_the_time_spent_asleep() -> None:
    run = {"a": lambda: time.sleep(0.02)}
    assert max(interleaved_seconds(run, 3, clock=time.thread_time)["a"]) < 0.01


@pytest.mark.parametrize(
    ("seconds", "baseline", "verdict"),
    [
        ([1.0, 1.1, 0.9, 1.0], [2.0, 2.1, 1.9, 2.2], "faster"),
        ([2.0, 2.1, 1.9, 2.2], [1.0, 1.1, 0.9, 1.0], "slower"),
        ([1.0, 2.0, 1.0, 2.0], [2.0, 1.0, 2.0, 1.0], "inconclusive"),
        ([1.0, 1.0], [1.0, 1.0], "inconclusive"),
    ],
)
def test_verdict(seconds: list[float], baseline: list[float], verdict: str) -> None:
    assert compare(seconds, baseline).verdict == verdict


def test_pairs_see_through_drift() -> None:
    drift = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    comparison = compare(drift, [1.2 * item for item in drift])
    assert comparison.speedup.value == pytest.approx(1.2)
    assert comparison.verdict == "faster"


def test_one_pair_decides_nothing() -> None:
    with pytest.raises(QualityError):
        compare([1.0], [2.0])

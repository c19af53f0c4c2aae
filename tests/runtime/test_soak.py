"""Concurrent requests on one session, as benchmarks/soak.py does at length."""

from pathlib import Path

import numpy as np
import pytest

from optimize.export.bundle import export_bundle
from optimize.runtime import load
from tests.loading import benchmark
from tests.runtime import toy_language as toy

GROWTH_MIB = 8.0
"""What the allocators' pools may grow; one kept answer of each request would be far less."""


@pytest.fixture(scope="module")
def soak():
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc, which this system lacks")
    with benchmark("soak") as module:
        yield module


@pytest.fixture
def asks(request, soak, tiny_bundle, tmp_path):
    """Requests of one kind."""
    if request.param == "pictures":
        with load(tiny_bundle, threads=1) as session:
            yield soak.picture_asks(session, "labels")
        return
    with load(export_bundle(toy.colours(), tmp_path / "b"), threads=1) as session:
        prompts = ["what colour", "what", "is it", ["what", "colour"]]

        def ask(prompt):
            return lambda: {"tokens": session(prompt=prompt)["tokens"]}

        def stream(prompt):
            return lambda: {"text": np.array(list(session.stream(prompt=prompt)))}

        yield [ask(prompt) for prompt in prompts] + [stream(prompt) for prompt in prompts[:3]]


@pytest.mark.parametrize("asks", ["pictures", "texts"], indirect=True)
def test_answers_stay_the_same_and_nothing_grows(soak, asks):
    figures = soak.soak(asks, threads=4, each=40)
    assert figures["requests"] == 160 and figures["different"] == 0
    assert figures["thread_growth"] == 0 and figures["file_growth"] == 0
    assert figures["rss_growth_mib"] < GROWTH_MIB, figures


def test_a_wrong_answer_is_counted(soak):
    answers = iter(range(1000))
    figures = soak.soak([lambda: {"x": np.array(next(answers))}], threads=2, each=4)
    # Two threads ask four times each, and once each while warming up; the first answer was 0.
    assert figures["requests"] == 8 and figures["different"] == 10
    same = {"x": np.zeros(2)}
    assert soak.same(same, {"x": np.zeros(2)}) and not soak.same(same, {"x": -np.zeros(2)})
    assert not soak.same(same, {"y": np.zeros(2)}) and not soak.same(same, {"x": np.zeros(2, "f4")})

import time

import numpy as np
import pytest

from optimize.gate.pairs import Samples
from optimize.gate.policy import Policy
from optimize.gate.timing import time_checks, timed


class Noisy:
    """A side of a busy machine: its times are those of the truth and of disturbances."""

    steps, seconds = 8, 0.08

    def __init__(self, generator, slower=1.0, memory=100 << 20, noise=0.1, pause=0.0):
        self.generator, self.slower, self.memory, self.noise = generator, slower, memory, noise
        self.facts, self.closed, self.pause = {}, False, pause

    def run(self, slices):
        time.sleep(self.pause)
        taken = 0.01 * self.slower * np.exp(abs(self.generator.normal(0, self.noise)))
        if self.generator.random() < 0.1:
            taken *= self.generator.uniform(1.5, 4)
        return taken, taken * 1.01

    def peak_memory(self):
        return self.memory

    def close(self):
        self.closed = True


def sides(slower, seed, **options):
    generator = np.random.default_rng(seed)
    made = []

    def make():
        pair = (
            Noisy(generator, slower, **options),
            Noisy(generator, **{**options, "memory": 100 << 20}),
        )
        made.extend(pair)
        return pair

    return make, made


def silent(stage, share):
    pass


def outcome(slower, seed, seconds=1.0):
    make, _ = sides(slower, seed)
    return timed(make, Policy(seconds=seconds), silent).outcome


def test_equal_sides_never_fail_and_slower_ones_do():
    # Rates over hundreds of real runs are measured by benchmarks/gates.py.
    assert [outcome(1.0, seed) for seed in range(10)] == ["pass"] * 10
    assert [outcome(1.10, seed) for seed in range(3)] == ["fail"] * 3
    assert [outcome(1.06, seed, seconds=3.0) for seed in range(4)] == ["fail"] * 4


def test_a_faster_side_passes():
    assert outcome(0.8, 0) == "pass"


def test_every_side_is_closed():
    make, made = sides(1.1, 0)
    timed(make, Policy(seconds=1.0), silent)
    assert len(made) == 4 and all(side.closed for side in made)


@pytest.mark.parametrize(
    ("factors", "outcome"),
    [([1.2, 1.0, 1.0], "pass"), ([1.2, 1.0, 1.2], "fail"), ([1.2, 1.2], "fail"), ([1.0], "pass")],
)
def test_a_failure_must_be_found_twice(factors, outcome):
    """A process whose memory lies badly is slower until it ends."""
    generator = np.random.default_rng(0)
    left = list(factors)

    def make():
        return Noisy(generator, left.pop(0)), Noisy(generator)

    cpu = cpu_check(timed(make, Policy(seconds=8.0), silent))
    assert cpu.outcome == outcome and not left
    if len(factors) == 3:
        assert f"3 measurements found fail, pass, {outcome}" in cpu.message


def cpu_check(timing):
    return next(check for check in timing.checks if check.metric == "cpu_time")


def test_what_cannot_be_decided_is_inconclusive():
    # Twenty milliseconds a slice: time for about ten requests of each side.
    make, _ = sides(1.0, 0, noise=0.5, pause=0.01)
    cpu = cpu_check(timed(make, Policy(seconds=4.0), silent))
    assert cpu.outcome == "inconclusive" and "quieter machine" in cpu.message
    assert cpu.low < 1.025 < cpu.high


def test_too_few_requests_decide_nothing():
    make, _ = sides(3.0, 0, pause=0.04)
    cpu = cpu_check(timed(make, Policy(seconds=1.0), silent))
    assert cpu.outcome == "inconclusive"
    assert "expected at least 8; give the policy more `seconds`" in cpu.message


def test_more_memory_fails():
    make, _ = sides(1.0, 0, memory=120 << 20)
    timing = timed(make, Policy(seconds=1.0), silent)
    (memory,) = [check for check in timing.checks if check.metric == "peak_memory"]
    assert memory.outcome == "fail"
    assert memory.message == "peak memory: 126 MB, baseline 105 MB, limit 113 MB"


@pytest.mark.parametrize("slower", [1.0, 1.02])
def test_the_smallest_effect_applies_to_times_without_noise(slower):
    samples = Samples(slices=3)
    for metric in samples.seconds:
        samples.seconds[metric] = [[(0.01 * slower, 0.01)] * 3] * 10
    assert {check.outcome for check in time_checks(samples, Policy())} == {"pass"}


def test_a_clock_that_stands_still_decides_nothing():
    samples = Samples(slices=3)
    for metric in samples.seconds:
        samples.seconds[metric] = [[(0.0, 0.0)]] * 10
    checks = time_checks(samples, Policy())
    assert {check.outcome for check in checks} == {"inconclusive"}
    assert "the clock is too coarse" in checks[0].message


def test_two_measurements_are_cut_alike():
    """The second pair would be cut into more slices than the first."""
    generator = np.random.default_rng(0)
    shortest = iter([0.013, 0.08])

    def make():
        pair = (Noisy(generator, 1.3), Noisy(generator))
        pair[0].seconds = next(shortest)
        return pair

    timing = timed(make, Policy(seconds=2.0), silent)
    assert timing.outcome == "fail"
    assert timing.samples.array("cpu_time").shape[1:] == (4, 2)

import numpy as np
import pytest

from optimize.gate.pairs import Samples, add_request, ratio, slices_of
from optimize.gate.worker import slice_ends
from optimize.ir.errors import QualityError


def seconds(requests=20, slices=5, slower=1.0, noise=0.0, seed=0):
    """Times [requests, slices, 2] whose candidate is slower by a factor."""
    generator = np.random.default_rng(seed)
    machine = np.exp(generator.normal(0, 0.3, (requests, slices, 1)))
    own = np.exp(generator.normal(0, noise, (requests, slices, 2))) if noise else 1.0
    return np.asarray(0.01 * machine * own * np.array([slower, 1.0]))


@pytest.mark.parametrize("slower", [0.5, 1.0, 1.05, 3.0])
def test_a_machine_that_changes_speed_changes_nothing(slower):
    found = ratio(seconds(slower=slower), 0.99)
    assert found.value == pytest.approx(slower, rel=1e-12)
    assert found.low == pytest.approx(slower) and found.high == pytest.approx(slower)


def test_slices_count_by_what_they_take():
    times = np.ones((6, 2, 2))
    times[:, 0] *= 9.0
    times[:, 1, 0] = 2.0
    assert ratio(times, 0.99).value == pytest.approx(11 / 10)


def test_identical_samples_give_a_finite_interval():
    found = ratio(np.full((10, 3, 2), 0.5), 0.99)
    assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)


def test_an_outlier_changes_nothing():
    times = seconds(noise=0.01)
    before = ratio(times, 0.99)
    times[3, 2, 0] *= 1000
    after = ratio(times, 0.99)
    assert after.value == pytest.approx(before.value, abs=0.005)
    assert after.high < 1.02


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_what_is_no_time_is_refused(bad):
    times = seconds()
    times[0, 0, 0] = bad
    with pytest.raises(QualityError, match="not positive and finite"):
        ratio(times, 0.99)


def test_one_request_is_refused():
    with pytest.raises(QualityError, match="found 1 requests"):
        ratio(seconds(requests=1), 0.99)


def test_the_interval_covers_the_truth():
    # 95 % intervals of 200 experiments: fewer than 90 % would be a fault of the bootstrap.
    hits = 0
    for seed in range(200):
        found = ratio(seconds(requests=15, slices=4, slower=1.1, noise=0.1, seed=seed), 0.95)
        hits += found.low <= 1.1 <= found.high
    assert hits >= 180


class Fixed:
    """A side that takes what it is told, and remembers when it was asked."""

    def __init__(self, name, log, steps=4, taken=0.01):
        self.name, self.log, self.steps, self.seconds = name, log, steps, steps * taken
        self.taken, self.facts = taken, {}

    def run(self, slices):
        self.log.append(self.name)
        return self.taken, 2 * self.taken

    def peak_memory(self):
        return 0

    def close(self):
        pass


def test_sides_take_turns_and_begin_in_turns():
    log = []
    pair = (Fixed("candidate", log), Fixed("baseline", log))
    samples = Samples(slices=2)
    add_request(samples, pair)
    assert log == ["candidate", "baseline", "baseline", "candidate"]
    add_request(samples, pair)
    assert log[4:] == ["baseline", "candidate", "candidate", "baseline"]
    assert samples.array("cpu_time").shape == (2, 2, 2)
    assert samples.array("wall_time")[0, 0].tolist() == [0.02, 0.02]


def test_slices_are_as_many_as_both_sides_and_the_clock_allow():
    log = []
    assert slices_of((Fixed("a", log, steps=21), Fixed("b", log, steps=20))) == 20
    assert slices_of((Fixed("a", log, steps=500), Fixed("b", log, steps=500))) == 64
    assert slices_of((Fixed("a", log, steps=20, taken=5e-4), Fixed("b", log, steps=20))) == 3
    assert slices_of((Fixed("a", log, steps=1, taken=1e-6), Fixed("b", log, steps=9))) == 1


@pytest.mark.parametrize(("steps", "slices"), [(20, 20), (21, 20), (50, 8), (1, 1), (7, 3)])
def test_a_request_has_as_many_slices_as_asked_for(steps, slices):
    ends = [done for done in range(1, steps + 1) if slice_ends(done, steps, slices)]
    assert len(ends) == slices and ends[-1] == steps

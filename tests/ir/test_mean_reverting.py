"""The mean-reverting schedule: IR-SDE's values, and what must hold between its timesteps."""

from __future__ import annotations

import numpy as np
import pytest

from optimize.ir.errors import InputModelError
from optimize.ir.mean_reverting import MeanRevertingSchedule
from optimize.ir.schedules import Respaced

ENDS = np.array([0.0, 100.0])


def test_has_the_published_values() -> None:
    schedule = MeanRevertingSchedule()
    assert len(schedule.rates) == 101
    assert schedule.time_step == pytest.approx(0.104093, abs=5e-7)
    alpha, sigma = schedule.alpha(ENDS), schedule.sigma(ENDS)
    assert alpha == pytest.approx([0.999936, 0.005], abs=5e-7)
    assert sigma == pytest.approx([0.00221722, 0.196076], abs=5e-7)
    assert np.log(alpha / sigma) == pytest.approx([6.11144, -3.66906], abs=5e-6)


def test_rates_rise_as_the_cosine_falls() -> None:
    schedule = MeanRevertingSchedule(timesteps=7)
    kept = [np.cos((k / 9 + 0.008) / 1.008 * np.pi / 2) ** 2 for k in range(9)]
    assert schedule.rates == pytest.approx([1 - kept[k] / kept[0] for k in range(1, 9)])


def test_alpha_follows_the_rate_between_timesteps() -> None:
    schedule = MeanRevertingSchedule()
    alpha = schedule.alpha(np.array([41.0, 41.25, 42.0]))
    assert alpha[2] / alpha[0] == pytest.approx(np.exp(-schedule.rates[42] * schedule.time_step))
    assert alpha[1] == pytest.approx(alpha[0] ** 0.75 * alpha[2] ** 0.25)


def test_spread_is_that_of_the_stationary_process() -> None:
    schedule = MeanRevertingSchedule(stationary_sigma=0.3, final_alpha=0.01)
    timestep = np.linspace(0, 100, 333)
    alpha, sigma = schedule.alpha(timestep), schedule.sigma(timestep)
    assert sigma**2 + 0.09 * alpha**2 == pytest.approx(np.full(333, 0.09))
    assert np.all(np.diff(alpha) < 0)
    assert alpha[-1] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("timesteps", "sigma", "alpha"), [(0, 0.2, 0.005), (100, 0.0, 0.005), (100, 0.2, 1.0)]
)
def test_refuses_values_out_of_range(timesteps: int, sigma: float, alpha: float) -> None:
    with pytest.raises(InputModelError, match="MeanRevertingSchedule: found"):
        MeanRevertingSchedule(timesteps, sigma, alpha)


def test_levels_lead_from_the_last_timestep_to_the_first() -> None:
    schedule = MeanRevertingSchedule()
    levels = schedule.levels(8)
    assert levels.timestep.tolist() == [100.0, 87.5, 75.0, 62.5, 50.0, 37.5, 25.0, 12.5]
    timestep = np.append(levels.timestep, 0.0)
    assert np.array_equal(levels.alpha, schedule.alpha(timestep))
    assert np.array_equal(levels.sigma, schedule.sigma(timestep))
    assert levels.prior == schedule.stationary_sigma


def test_path_reads_timesteps_off_levels_and_back() -> None:
    path = MeanRevertingSchedule().path
    timestep = np.array([0.0, 0.25, 3.5, 60.0, 99.9, 100.0])
    level = path.level(timestep)
    assert path.time(level) == pytest.approx(timestep, abs=1e-9)
    alpha, sigma = path.split(level)
    assert sigma / alpha == pytest.approx(level)
    assert alpha == pytest.approx(MeanRevertingSchedule().alpha(timestep))
    assert path.level_at(np.log(alpha / sigma)) == pytest.approx(level)
    assert path.ends == pytest.approx((0.00221736, 39.2152), rel=1e-5)
    assert [float(item[0]) for item in path.split(np.zeros(1))] == [1.0, 0.0]


def test_can_be_spaced_evenly_in_log_snr() -> None:
    schedule = Respaced(MeanRevertingSchedule(), "log_snr", final="lowest")
    levels = schedule.levels(10)
    half = levels.half_log_snr
    assert np.diff(half) == pytest.approx(np.full(10, (6.11144 + 3.66906) / 10), abs=1e-5)
    assert levels.timestep[0] == pytest.approx(100.0)

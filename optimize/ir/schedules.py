"""Noise schedules: which noise levels a run of some number of steps goes through.

A schedule knows its path (`optimize.ir.noise_path`) and the levels its model is sampled at by
default; `Respaced` takes the same path in other steps. All numbers are float64.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from optimize.ir.errors import InputModelError
from optimize.ir.noise_path import (
    LEAST_ALPHA,
    Array,
    FlowPath,
    Levels,
    NoisePath,
    VariancePath,
    beta_path,
    half_log_snr,
    levels_on,
)

RHO = 7.0
"""Exponent of Karras et al. (2022)."""

BETA = 0.6
"""Both parameters of the law of Lee et al. (2024)."""

Picked = Literal["linspace", "leading", "trailing"]
"""How whole training timesteps are picked, as in diffusers."""


class Schedule(Protocol):
    """Any source of noise levels, such as a library's scheduler."""

    @property
    def path(self) -> NoisePath:
        """The forward process the levels lie on."""
        ...

    def levels(self, steps: int) -> Levels:
        """The noise levels of a run of `steps` steps."""
        ...


@dataclass(frozen=True)
class FlowSchedule:
    """Flow matching: sigma falls from `start` to 0, uniformly before the shift.

    Args:
        shift: s → shift s / (1 + (shift - 1) s); > 0; 1 leaves the list uniform.
        start: first sigma before the shift, in (0, 1].
        end: last non-zero sigma before the shift; None means start / steps.
        timestep_scale: the model's time argument is this times sigma (1000 in diffusers).
    Source: Esser et al. (2024), section 5.3.2, equation 23.
    """

    shift: float = 1.0
    start: float = 1.0
    end: float | None = None
    timestep_scale: float = 1000.0

    @classmethod
    def for_tokens(
        cls,
        tokens: int,
        *,
        shifts: tuple[float, float] = (0.5, 1.15),
        between: tuple[int, int] = (256, 4096),
    ) -> "FlowSchedule":
        """The shift that suits a resolution, as FLUX has it: its logarithm is linear in tokens.

        Args:
            tokens: of the latent, > 0.
            shifts: logarithm of the shift at the two token counts of `between`.
        """
        low, high = between
        slope = (shifts[1] - shifts[0]) / (high - low)
        return cls(shift=math.exp(shifts[0] + slope * (tokens - low)))

    @property
    def path(self) -> NoisePath:
        return FlowPath(self.timestep_scale)

    def levels(self, steps: int) -> Levels:
        """The noise levels of a run of `steps` steps."""
        end = self.start / steps if self.end is None else self.end
        sigma = shifted(np.linspace(self.start, end, steps), self.shift)
        return levels_on(self.path, np.append(sigma, 0.0))


def shifted(sigma: Array, shift: float) -> Array:
    """Flow levels moved towards noise (shift > 1) or towards the clean end."""
    return sigma if shift == 1.0 else shift * sigma / (1.0 + (shift - 1.0) * sigma)


@dataclass(frozen=True)
class VarianceSchedule:
    """Variance preserving: the betas of a discrete training schedule, subsampled.

    Args:
        beta_start, beta_end: first and last beta, in (0, 1).
        beta_schedule: "linear" in beta, or "scaled_linear" in its square root.
        train_steps: length of the training schedule.
        spacing: how the timesteps are picked, as in diffusers.
        steps_offset: added to the timesteps of "leading" spacing.
    Source: Ho et al. (2020), equation 4; Lin et al. (2023), table 2, for the spacings.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["linear", "scaled_linear"] = "scaled_linear"
    train_steps: int = 1000
    spacing: Picked = "leading"
    steps_offset: int = 0

    @property
    def path(self) -> VariancePath:
        return beta_path(self.beta_start, self.beta_end, self.beta_schedule, self.train_steps)

    def levels(self, steps: int) -> Levels:
        """The noise levels of a run of `steps` steps."""
        path, timestep = self.path, self._timesteps(steps)
        alpha = np.append(np.sqrt(path.kept[timestep]), 1.0)
        sigma = np.append(np.sqrt(1.0 - path.kept[timestep]), 0.0)
        return Levels(alpha, sigma, timestep.astype(np.float64), path)

    def _timesteps(self, steps: int) -> NDArray[np.int64]:
        last = self.train_steps
        picked: NDArray[Any]
        if self.spacing == "linspace":
            picked = np.linspace(0, last - 1, steps + 1).round()[::-1][:-1]
        elif self.spacing == "leading":
            picked = (np.arange(0, steps + 1) * (last // (steps + 1))).round()[::-1][:-1]
            picked = picked + self.steps_offset
        else:
            picked = np.arange(last, 0, -last / steps).round() - 1
        return picked.astype(np.int64)


Spacing = Literal["time", "log_snr", "quadratic", "karras", "exponential", "lu", "beta"]
"""Uniform in time, in log-SNR, in the root of time; rho 7; uniform in the logarithm of the level
(two
names); quantiles of a beta law."""


@dataclass(frozen=True)
class Respaced:
    """Another schedule's path, in steps of one's own.

    "time" and "quadratic" end where time ends. The others take `steps` levels from the highest to
    the lowest of training and then sigma 0, as diffusers does.

    Args:
        base: whose path it is.
        spacing: how the levels lie.
        shift: of flow levels spaced in time, > 0.
        lowest: the last level above 0; None means the lowest of training.
        final: "zero" ends clean; "lowest" at the lowest level, whose log-SNR is finite.
    Source: Karras et al. (2022), equation 5; Lu et al. (2022), DPM-Solver, section 3.4; Lee et al.
        (2024), Beta Sampling is All You Need, section 4.
    """

    base: Schedule
    spacing: Spacing
    shift: float = 1.0
    lowest: float | None = None
    final: Literal["zero", "lowest"] = "zero"

    def __post_init__(self) -> None:
        if self.spacing not in get_args(Spacing):
            raise InputModelError(
                f"schedule: found {self.spacing!r}, expected one of {', '.join(get_args(Spacing))}"
            )
        flow_in_time = self.spacing == "time" and isinstance(self.path, FlowPath)
        if self.shift != 1.0 and not flow_in_time:
            raise InputModelError(
                f"shift: found {self.shift} with schedule {self.spacing!r}, expected it with "
                "schedule 'time' of a flow model only"
            )
        low, high = self.path.ends
        if self.lowest is not None and not 0 < self.lowest < high:
            raise InputModelError(
                f"lowest: found {self.lowest}, expected a level between 0 and {high:g}"
            )

    @property
    def path(self) -> NoisePath:
        return self.base.path

    def levels(self, steps: int) -> Levels:
        """The noise levels of a run of `steps` steps."""
        low, high = self.path.ends
        low = low if self.lowest is None else self.lowest
        in_time = self.spacing in ("time", "quadratic")
        count = steps + 1 if in_time or self.final == "lowest" else steps
        # One level alone would be the lowest.
        level = self._spaced(low, high, count) if count > 1 else np.array([high])
        if self.final == "zero":
            level = np.append(level[:steps], 0.0)
        return levels_on(self.path, level)

    def _spaced(self, low: float, high: float, count: int) -> Array:
        """[count] levels from high to low, both exactly."""
        part = np.linspace(0.0, 1.0, count)
        level: Array
        if self.spacing in ("time", "quadratic"):
            power = 1.0 if self.spacing == "time" else 2.0
            start, end = self.path.time(np.array([high, low])) ** (1.0 / power)
            end = 0.0 if self.final == "zero" else end
            times = (start + part * (end - start)) ** power
            return shifted(self.path.level(times), self.shift)
        if self.spacing == "karras":
            level = (high ** (1 / RHO) + part * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO
            return level
        if self.spacing == "beta":
            level = low + (high - low) * betaincinv(BETA, BETA, 1.0 - part)
            return level
        if self.spacing == "log_snr":
            alpha, sigma = self.path.split(np.array([high, low]))
            start, end = half_log_snr(np.maximum(alpha, LEAST_ALPHA), sigma)
            level = self.path.level_at(start + part * (end - start))
            # Pure noise stands for itself, not for the finite log-SNR it is given.
            return np.concatenate([[high], level[1:-1], [low]])
        level = np.exp(np.log(high) + part * (np.log(low) - np.log(high)))
        return level


def check_levels(levels: Levels) -> None:
    """Refuses a list of noise levels that no solver can follow.

    Raises:
        InputModelError: no step, NaN or infinite numbers, or noise that does not fall.
    """
    alpha, sigma = levels.alpha, levels.sigma
    if levels.steps < 1 or len(alpha) != levels.steps + 1 or len(sigma) != len(alpha):
        raise InputModelError(
            f"schedule: found {len(sigma)} noise levels for {levels.steps} timesteps, expected at "
            "least one timestep and one level more than timesteps"
        )
    for name, numbers in (("alpha", alpha), ("sigma", sigma), ("timestep", levels.timestep)):
        if not np.all(np.isfinite(numbers)):
            raise InputModelError(f"schedule: found {name} {numbers}, expected finite numbers")
    ratio = sigma / np.maximum(alpha, 1e-12)
    for step in np.flatnonzero(np.diff(ratio) >= 0):
        found = "equal" if ratio[step] == ratio[step + 1] else "rising"
        raise InputModelError(
            f"schedule: found {found} noise levels sigma {sigma[step]:g}, {sigma[step + 1]:g} at "
            f"step {step}, expected levels that fall; use fewer steps or another schedule"
        )

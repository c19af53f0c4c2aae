"""What a user says about a denoising loop, and the noise schedule it follows.

A latent at noise level i is `alpha[i] * clean + sigma[i] * noise`. Flow models have
alpha = 1 - sigma; variance-preserving ones alpha = sqrt(1 - sigma**2). All numbers here are
float64.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from optimize.ir.errors import InputModelError

Prediction = Literal["flow", "epsilon", "v", "denoised"]
"""What the network outputs: noise - clean, the noise, alpha noise - sigma clean, or the clean."""

Spacing = Literal["linspace", "leading", "trailing"]
MAX_STEPS = 10_000


@dataclass(frozen=True)
class Levels:
    """Noise levels of one sampling run: steps + 1 of them, the last with sigma 0.

    Attributes:
        alpha, sigma: [steps + 1], decreasing noise.
        timestep: [steps], the model's own time argument of each step.
    """

    alpha: NDArray[np.float64]
    sigma: NDArray[np.float64]
    timestep: NDArray[np.float64]

    @property
    def steps(self) -> int:
        return len(self.timestep)


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

    def levels(self, steps: int) -> Levels:
        """The noise levels of a run of `steps` steps."""
        end = self.start / steps if self.end is None else self.end
        sigma = np.linspace(self.start, end, steps)
        sigma = self.shift * sigma / (1.0 + (self.shift - 1.0) * sigma)
        sigma = np.append(sigma, 0.0)
        return Levels(1.0 - sigma, sigma, sigma[:-1] * self.timestep_scale)


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
    spacing: Spacing = "leading"
    steps_offset: int = 0

    def levels(self, steps: int) -> Levels:
        """The noise levels of a run of `steps` steps."""
        if self.beta_schedule == "linear":
            beta = np.linspace(self.beta_start, self.beta_end, self.train_steps)
        else:
            root = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.train_steps)
            beta = root**2
        kept = np.cumprod(1.0 - beta)
        timestep = self._timesteps(steps)
        alpha = np.append(np.sqrt(kept[timestep]), 1.0)
        sigma = np.append(np.sqrt(1.0 - kept[timestep]), 0.0)
        return Levels(alpha, sigma, timestep.astype(np.float64))

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


class CustomSchedule(Protocol):
    """Any other source of noise levels, such as a library's scheduler."""

    def levels(self, steps: int) -> Levels:
        """The noise levels of a run of `steps` steps."""
        ...


Schedule = FlowSchedule | VarianceSchedule | CustomSchedule


@dataclass(frozen=True)
class DenoiseLoop:
    """Describes the sampling loop of a denoiser, so that any `nn.Module` can be captured.

    Args:
        latent: the module's argument that takes the noisy latent, [B, ...].
        timestep: the module's argument that takes the time, [B] or scalar.
        prediction: what the module returns.
        schedule: noise levels; by default a flow schedule for flow models, else the
            variance-preserving one of latent diffusion.
        steps: denoising steps, in [1, 10000].
        guidance_scale: classifier-free guidance weight; 1 or None means no guidance. With guidance
            the network runs once on a doubled batch.
        unconditional: conditioning arguments that differ between the guidance halves; the request
            gives them as `negative_<name>`. Other arguments are shared.
        null_values: argument → number that fills its unconditional half instead of a request field
            (such as {"class_labels": 1000}).
        guided_channels: guidance applies to this many first channels (dimension 1) of the
            prediction, the others are the conditional half's; None means all.
        learned_variance: the module returns twice the latent's channels and the second half is
            dropped; None decides by shape.
    """

    latent: str = "hidden_states"
    timestep: str = "timestep"
    prediction: Prediction = "flow"
    schedule: Schedule | None = None
    steps: int = 50
    guidance_scale: float | None = None
    unconditional: tuple[str, ...] = ()
    null_values: dict[str, float] = field(default_factory=dict)
    guided_channels: int | None = None
    learned_variance: bool | None = None

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise InputModelError(
                f"DenoiseLoop: found prediction {self.prediction!r}, "
                f"expected one of {', '.join(get_args(Prediction))}"
            )
        check_steps(self.steps)
        scale = self.guidance_scale
        if scale is not None and not (math.isfinite(scale) and 0 <= scale <= 1000):
            raise InputModelError(
                f"DenoiseLoop: found guidance_scale {scale}, expected a number in [0, 1000]"
            )
        if self.guided and not (self.unconditional or self.null_values):
            raise InputModelError(
                f"DenoiseLoop: found guidance_scale {scale} without unconditional arguments; "
                "name those that differ in `unconditional` or `null_values`"
            )

    @property
    def guided(self) -> bool:
        return self.guidance_scale is not None and self.guidance_scale != 1.0

    def levels(self, steps: int | None = None) -> Levels:
        """The noise levels of a run, of `self.steps` steps by default."""
        schedule = self.schedule
        if schedule is None:
            schedule = FlowSchedule() if self.prediction == "flow" else VarianceSchedule()
        return schedule.levels(self.steps if steps is None else steps)


def check_steps(steps: int) -> None:
    """Refuses step counts that cannot be meant.

    Raises:
        InputModelError: `steps` is not a whole number in [1, 10000].
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise InputModelError(
            f"steps: found {steps!r}, expected a whole number in [1, {MAX_STEPS}]"
        )

"""What a user says about a denoising loop."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from optimize.ir.errors import InputModelError
from optimize.ir.noise_path import Levels
from optimize.ir.schedules import FlowSchedule, Schedule, VarianceSchedule

Prediction = Literal["flow", "epsilon", "v", "denoised"]
"""What the network outputs: noise - clean, the noise, alpha noise - sigma clean, or the clean."""

MAX_STEPS = 10_000


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

    @property
    def noise_schedule(self) -> Schedule:
        """The schedule given, or the usual one of what the model predicts."""
        if self.schedule is not None:
            return self.schedule
        return FlowSchedule() if self.prediction == "flow" else VarianceSchedule()

    def levels(self, steps: int | None = None) -> Levels:
        """The noise levels of a run, of `self.steps` steps by default."""
        return self.noise_schedule.levels(self.steps if steps is None else steps)


def check_steps(steps: int) -> None:
    """Refuses step counts that cannot be meant.

    Raises:
        InputModelError: `steps` is not a whole number in [1, 10000].
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise InputModelError(
            f"steps: found {steps!r}, expected a whole number in [1, {MAX_STEPS}]"
        )

"""The schedulers of diffusers as noise schedules and solvers.

A scheduler is made anew from its class name and configuration whenever levels are asked for, so a
schedule is plain data and every number of steps gives the levels its pipeline would use.
Schedulers move the latent linearly: `solver` reads the coefficients of every step off the scheduler
itself, by giving it unit vectors for the latent, the prediction and whatever it keeps.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from optimize.ir.denoise import Prediction
from optimize.ir.errors import InputModelError
from optimize.ir.noise_path import FlowPath, Levels, NoisePath, VariancePath
from optimize.ir.solver_step import SolverStep, pruned

DISCRETE = ("DDIMScheduler", "DDPMScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
"""Their levels are those of whole training steps."""

MULTISTEP = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
SCHEDULERS = (
    "FlowMatchEulerDiscreteScheduler",
    "EulerDiscreteScheduler",
    *MULTISTEP,
    *DISCRETE,
)
"""Class names that are read; no other class is ever made from a configuration."""

NAMES: Mapping[str, Prediction] = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "sample": "denoised",
    "flow_prediction": "flow",
}

Sigmas = Literal["scheduler", "uniform"]
"""Who makes the sigmas before the shift: the scheduler, or the pipeline, from 1 to 1 / steps."""


@dataclass(frozen=True)
class DiffusersSchedule:
    """The noise levels of a diffusers scheduler.

    Args:
        scheduler: class name, one of `SCHEDULERS`.
        config: the scheduler's configuration.
        sigmas: who makes the sigmas of a flow schedule.
        mu: the resolution's shift, for configurations with dynamic shifting.
    """

    scheduler: str
    config: Mapping[str, Any]
    sigmas: Sigmas = "scheduler"
    mu: float | None = None

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise InputModelError(
                f"scheduler: found {self.scheduler}, expected one of {', '.join(SCHEDULERS)}; "
                "set pipeline.scheduler to one of these, made from the same configuration"
            )
        refused = ["thresholding", "invert_sigmas", "stochastic_sampling"]
        if self.scheduler in ("DDIMScheduler", "DDPMScheduler"):
            refused.append("clip_sample")  # the CogVideoX ones have the option and ignore it
        for name in refused:
            if self.config.get(name):
                raise InputModelError(
                    f"scheduler: found {self.scheduler} with {name}={self.config[name]!r}, "
                    "expected False: each step must be linear in the latent and not random; make "
                    f"it with from_config(pipeline.scheduler.config, {name}=False)"
                )
        if self.config.get("solver_p") is not None:
            raise InputModelError("scheduler: found a solver_p, expected None; leave it out")

    @property
    def prediction(self) -> Prediction:
        """What the network outputs, according to the configuration."""
        if self.scheduler == "FlowMatchEulerDiscreteScheduler":
            return "flow"
        found = self.config.get("prediction_type", "epsilon")
        if found not in NAMES:
            raise InputModelError(
                f"scheduler: found prediction_type {found!r}, expected one of {', '.join(NAMES)}"
            )
        return NAMES[found]

    @property
    def random(self) -> bool:
        """Whether the scheduler adds noise at every step, which `solver` leaves out."""
        algorithm = str(self.config.get("algorithm_type"))
        return self.scheduler in ("DDPMScheduler", "CogVideoXDPMScheduler") or (
            algorithm.startswith("sde")
        )

    @property
    def path(self) -> NoisePath:
        """The forward process the scheduler was configured for."""
        if self.prediction == "flow" or self.config.get("use_flow_sigmas"):
            return FlowPath(float(self.config.get("num_train_timesteps", 1000)))
        return VariancePath(_array(self._made(1).alphas_cumprod))

    def levels(self, steps: int) -> Levels:
        """The noise levels of a run of `steps` steps, in the form alpha * clean + sigma * noise."""
        return self._levels(self._made(steps), steps)

    def solver(self, steps: int) -> SolverStep | None:
        """The scheduler's own steps; None where they are the plain ones of its levels."""
        if self.random or self.scheduler in (
            "FlowMatchEulerDiscreteScheduler",
            "EulerDiscreteScheduler",
        ):
            return None
        name = self.scheduler.removesuffix("Scheduler")
        made = self._made(steps)
        levels = self._levels(made, steps)
        matrices, kept = _matrices(made)
        if not np.all(np.isfinite(matrices)):
            raise InputModelError(
                f"scheduler: {self.scheduler} takes steps that are not finite in {steps} steps, "
                "expected numbers; its own samples would be NaN, so change its options"
            )
        return SolverStep(name, levels, pruned(matrices, kept))

    def _made(self, steps: int) -> Any:
        """The scheduler, ready for a run."""
        import diffusers

        kind = getattr(diffusers, self.scheduler)
        given: dict[str, Any] = {}
        flow = self.scheduler == "FlowMatchEulerDiscreteScheduler"
        if self.sigmas == "uniform" and flow:
            given["sigmas"] = np.linspace(1.0, 1 / steps, steps)
        if self.mu is not None and self.config.get("use_dynamic_shifting"):
            given["mu"] = self.mu
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = kind.from_config(dict(self.config))
            scheduler.set_timesteps(steps, **given)
        if len(scheduler.timesteps) != steps:
            raise InputModelError(
                f"scheduler: {self.scheduler} makes {len(scheduler.timesteps)} steps of {steps}; "
                "ask for another number"
            )
        return scheduler

    def _levels(self, scheduler: Any, steps: int) -> Levels:
        timestep = _array(scheduler.timesteps)
        if self.scheduler in DISCRETE:
            kept = _array(scheduler.alphas_cumprod)
            taken = timestep.astype(np.int64)
            # The first level may be pure noise, whose alpha is 0.
            now = kept[taken]
            end = getattr(scheduler, "final_alpha_cumprod", torch.ones(()))
            previous = int(taken[-1]) - scheduler.config.num_train_timesteps // steps
            last = float(end) if previous < 0 else float(kept[previous])
            squares = np.append(now, last)
            return Levels(np.sqrt(squares), np.sqrt(1.0 - squares), timestep, self.path)
        sigma = _array(scheduler.sigmas)
        flow = self.prediction == "flow" or self.config.get("use_flow_sigmas")
        alpha = 1.0 - sigma if flow else 1.0 / np.sqrt(sigma**2 + 1.0)
        return Levels(alpha, sigma if flow else sigma * alpha, timestep, self.path)


def schedule_of(
    scheduler: Any, *, sigmas: Sigmas = "scheduler", mu: float | None = None
) -> DiffusersSchedule:
    """The schedule of a scheduler object.

    Raises:
        InputModelError: a class or an option that is not read.
    """
    config = {
        name: item for name, item in dict(scheduler.config).items() if not name.startswith("_")
    }
    return DiffusersSchedule(type(scheduler).__name__, config, sigmas, mu)


def _array(values: Any) -> NDArray[np.float64]:
    return np.asarray(values.detach().cpu().double().numpy(), dtype=np.float64)


def _matrices(scheduler: Any) -> tuple[NDArray[np.float64], int]:
    """[steps, 1 + kept, 2 + kept]: (latent', kept') = matrix (latent, prediction, kept).

    What is kept: the last `solver_order` clean estimates, newest first, then the last sample.
    """
    # Coefficients come out with float64 digits where the scheduler computes them from these.
    for name in ("alphas_cumprod", "final_alpha_cumprod", "sigmas"):
        if isinstance(getattr(scheduler, name, None), torch.Tensor):
            setattr(scheduler, name, getattr(scheduler, name).double())
    multistep = hasattr(scheduler, "model_outputs")
    order = len(scheduler.model_outputs) if multistep else 0
    corrected = hasattr(scheduler, "last_sample")
    kept = order + corrected
    unit = torch.eye(2 + kept, dtype=torch.float64)[:, None]
    matrices = []
    for timestep in scheduler.timesteps:
        if multistep:
            scheduler.model_outputs = [
                None if item is None else unit[1 + order - place]
                for place, item in enumerate(scheduler.model_outputs)
            ]
        if corrected and scheduler.last_sample is not None:
            scheduler.last_sample = unit[1 + kept]
        moved = scheduler.step(unit[1], timestep, unit[0], return_dict=False)[0]
        rows = [moved]
        for age in range(order):
            estimate = scheduler.model_outputs[order - 1 - age]
            # None while the history fills: what moves on is still zero.
            rows.append(unit[1 + age] if estimate is None else estimate)
        if corrected:
            rows.append(scheduler.last_sample)
        matrices.append(torch.cat([row.double() for row in rows]).numpy())
    return np.stack(matrices), kept

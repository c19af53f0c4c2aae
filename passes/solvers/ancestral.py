"""DPM-Solver++ 2S with ancestral noise: a deterministic step to a lower level, then fresh noise.

    up = min(s', eta sqrt(s'^2 (s^2 - s'^2) / s^2)),   down = sqrt(s'^2 - up^2),   s = sigma / alpha

Two calls per step, one in the last, which ends without noise.
Source: Crowson et al., k-diffusion, `sample_dpmpp_2s_ancestral`; Lu et al. (2022), DPM-Solver++,
    algorithm 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from optimize.ir.noise_path import Array, Levels
from optimize.ir.solver_step import Estimate, SolverStep, recorded
from optimize.passes.solvers.solver_base import Sampling


class Stage(NamedTuple):
    """One call: where it is, where its step began, and where it goes.

    Attributes:
        inner: whether it is the second call of its step.
        alpha, sigma, timestep: where the network is asked.
        start: (alpha, sigma) of the step's beginning.
        end: (alpha, sigma) of where this call goes, before fresh noise.
        fresh: standard deviation of the noise then added.
    """

    inner: bool
    alpha: float
    sigma: float
    timestep: float
    start: tuple[float, float]
    end: tuple[float, float]
    fresh: float


def dpm_solver_pp_ancestral(run: Sampling) -> SolverStep:
    """The ancestral 2S solver; eta 0 is DPM-Solver++ 2S.

    Raises:
        ValueError: the noise levels stand alone, so there is no middle of a step.
    """
    outer = run.levels(run.calls // 2 + 1)
    stages = _stages(outer, run.calls, run.eta)

    def advance(
        call: int, latent: Array, seen: Estimate, kept: list[Array], noise: Array
    ) -> tuple[Array, Sequence[Array]]:
        stage = stages[call]
        origin = kept[0] if stage.inner else latent
        (alpha, sigma), (alpha_end, sigma_end) = stage.start, stage.end
        keep = sigma_end / sigma
        moved = keep * origin + (alpha_end - keep * alpha) * seen.clean
        return moved + stage.fresh * noise, (origin,)

    return recorded(
        "dpm_solver_pp_2s_ancestral",
        Levels(
            np.array([*(stage.alpha for stage in stages), outer.alpha[-1]]),
            np.array([*(stage.sigma for stage in stages), outer.sigma[-1]]),
            np.array([stage.timestep for stage in stages]),
            outer.path,
            outer.prior,
        ),
        run.prediction,
        advance,
        1,
        noisy=run.eta > 0,
        threshold=run.threshold,
    )


def _stages(outer: Levels, calls: int, eta: float) -> list[Stage]:
    path = outer.path
    if path is None:
        raise ValueError(
            "dpm_solver_pp_ancestral: found noise levels without a path, expected a schedule that "
            "knows the middle of a step; use dpm_solver_pp with eta"
        )
    ratio = np.exp(-outer.half_log_snr)
    doubles = calls - outer.steps
    stages = []
    for step, timestep in enumerate(outer.timestep):
        begin, end = ratio[step : step + 2]
        start = (float(outer.alpha[step]), float(outer.sigma[step]))
        alpha = float(outer.alpha[step + 1])
        up = min(end, eta * end * np.sqrt(begin**2 - end**2) / begin)
        down = np.sqrt(end**2 - up**2)
        last = Stage(False, *start, timestep, start, (alpha, alpha * down), alpha * up)
        if step >= doubles or down == 0:
            stages.append(last)
            continue
        level = path.level_at(-0.5 * np.log(np.array([begin * down])))
        middle = tuple(float(item[0]) for item in path.split(level))
        time = float(path.time(level)[0])
        stages.append(Stage(False, *start, timestep, start, (middle[0], middle[1]), 0.0))
        stages.append(last._replace(inner=True, alpha=middle[0], sigma=middle[1], timestep=time))
    return stages

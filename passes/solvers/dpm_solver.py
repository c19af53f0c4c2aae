"""DPM-Solver: the exponential integrator of the noise estimate, multistep and singlestep.

It is unstable above first order under strong guidance, and cannot start at pure noise; DPM-Solver++
has neither weakness.
Source: Lu et al. (2022), DPM-Solver, algorithms 1 and 2; the multistep forms are those of the
    authors' code, their third order corrected (see `exponential`).
"""

from optimize.ir.solver_step import SolverStep
from optimize.passes.solvers.exponential import multistep, singlestep
from optimize.passes.solvers.solver_base import Sampling


def dpm_solver(run: Sampling, third_order_factor: float = 2.0) -> SolverStep:
    """DPM-Solver multistep, order 1 (DDIM), 2 or 3.

    Raises:
        ValueError: thresholding, which needs the clean estimate, or a start at pure noise.
    """
    _refuse_threshold("dpm_solver", run)
    name = f"dpm_solver_{run.order}m"
    return multistep(name, run, "noise", third_order_factor=third_order_factor)


def dpm_solver_singlestep(run: Sampling) -> SolverStep:
    """DPM-Solver singlestep, order 1 (DDIM), 2 or 3, in the "fast" plan of its authors.

    Raises:
        ValueError: as `dpm_solver`.
    """
    _refuse_threshold("dpm_solver_singlestep", run)
    return singlestep(f"dpm_solver_{run.order}s", run, "noise")


def _refuse_threshold(name: str, run: Sampling) -> None:
    if run.threshold is not None:
        raise ValueError(
            f"{name}: found thresholding, expected none: its history is of noise estimates; use "
            "dpm_solver_pp"
        )

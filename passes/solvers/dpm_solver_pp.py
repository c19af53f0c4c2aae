"""DPM-Solver++: the exponential integrator of the clean estimate.

Multistep ("2M", "3M"; stochastic for any eta) and singlestep ("2S", "3S").
Source: Lu et al. (2022), DPM-Solver++, algorithms 1 and 2 and section 6; third order corrected (see
    `exponential`).
"""

from optimize.ir.solver_step import SolverStep
from optimize.passes.solvers.exponential import LastSteps, multistep, singlestep
from optimize.passes.solvers.solver_base import Sampling


def dpm_solver_pp(
    run: Sampling, *, last_steps: LastSteps = "lower", third_order_factor: float = 2.0
) -> SolverStep:
    """DPM-Solver++ multistep, order 1 (DDIM), 2 or 3, stochastic with eta > 0."""
    sde = "sde_" if run.eta > 0 else ""
    name = f"{sde}dpm_solver_pp_{run.order}m"
    return multistep(
        name, run, "data", last_steps=last_steps, third_order_factor=third_order_factor
    )


def dpm_solver_pp_singlestep(run: Sampling) -> SolverStep:
    """DPM-Solver++ singlestep, order 1 (DDIM), 2 or 3."""
    return singlestep(f"dpm_solver_pp_{run.order}s", run, "data")

"""MR Sampler: fast sampling of mean-reverting diffusion (IR-SDE and its kin).

Such a process pulls the latent towards a given image mu. In y = latent - mu it is an ordinary
diffusion, so the method is DPM-Solver++ on y with the second-order term's own integral ("taylor");
captured programs of mean-reverting models hold y as their state. The noise form is `dpm_solver`
with variant "taylor".
Source: Li et al. (2025), MRS, propositions 1 to 4; the last steps as in the authors' code.
"""

from dataclasses import replace

from optimize.ir.solver_step import SolverStep
from optimize.passes.solvers.exponential import multistep
from optimize.passes.solvers.solver_base import Sampling


def mr_sampler(run: Sampling) -> SolverStep:
    """MR Sampler in data form, order 1, 2 or 3; eta 0 is its ODE, eta 1 its SDE solver."""
    sde = "sde_" if run.eta > 0 else ""
    name = f"mr_sampler_{sde}{run.order}"
    return multistep(name, replace(run, variant="taylor"), "data", last_steps="mr_sampler")

"""Every solver by its recipe name. To add one: a file that makes a `SolverStep`, a line here."""

from dataclasses import replace

from optimize.ir.solver_step import SolverStep
from optimize.passes.solvers.adams_bashforth import adams_bashforth
from optimize.passes.solvers.ancestral import dpm_solver_pp_ancestral
from optimize.passes.solvers.ddim import ddim
from optimize.passes.solvers.dpm_solver import dpm_solver, dpm_solver_singlestep
from optimize.passes.solvers.dpm_solver_pp import dpm_solver_pp, dpm_solver_pp_singlestep
from optimize.passes.solvers.euler import euler, heun
from optimize.passes.solvers.mr_sampler import mr_sampler
from optimize.passes.solvers.solver_base import Sampling, Solver
from optimize.passes.solvers.unipc import unipc


def multistep(run: Sampling) -> SolverStep:
    """The multistep solver that suits the model: in sigma for flow, in log-SNR for the others."""
    if run.prediction == "flow":
        return adams_bashforth(run)
    return dpm_solver_pp(run)


def _options(*names: str) -> frozenset[str]:
    return frozenset(names)


SOLVERS: dict[str, Solver] = {
    "euler": Solver(euler, flow_only=True),
    "heun": Solver(heun, flow_only=True, options=_options("threshold")),
    "adams_bashforth": Solver(adams_bashforth, 3, flow_only=True, options=_options("threshold")),
    "ddim": Solver(ddim, options=_options("eta", "dualfast", "threshold")),
    "dpm_solver": Solver(dpm_solver, 3, _options("variant", "eta", "dualfast")),
    "dpm_solver_singlestep": Solver(dpm_solver_singlestep, 3, _options("variant")),
    "dpm_solver_pp": Solver(dpm_solver_pp, 3, _options("variant", "eta", "dualfast", "threshold")),
    "dpm_solver_pp_singlestep": Solver(
        dpm_solver_pp_singlestep, 3, _options("variant", "threshold")
    ),
    "dpm_solver_pp_ancestral": Solver(
        dpm_solver_pp_ancestral, options=_options("eta", "threshold")
    ),
    "unipc": Solver(unipc, 3, _options("dualfast", "threshold")),
    "mr_sampler": Solver(mr_sampler, 3, _options("eta", "dualfast")),
    "multistep": Solver(multistep, 3, _options("threshold")),
}
"""Recipe name → solver. A recipe may also say "same", the captured program's own."""


def solve(name: str, run: Sampling) -> SolverStep:
    """The solver of a name for a run.

    Raises:
        ValueError: an option the solver does not take, an order it does not have, or a model it
            does not suit.
        InputModelError: noise levels it cannot follow.
    """
    solver = SOLVERS[name]
    if solver.flow_only and run.prediction != "flow":
        raise ValueError(
            f"{name}: found prediction {run.prediction!r}, expected 'flow'; use solver ddim or "
            "dpm_solver_pp"
        )
    if not 1 <= run.order <= solver.highest_order:
        raise ValueError(
            f"{name}: found order {run.order}, expected a whole number in "
            f"[1, {solver.highest_order}]"
        )
    if run.calls < run.order:
        raise ValueError(
            f"{name}: found {run.calls} steps for order {run.order}, expected at least as many "
            "steps as the order"
        )
    plain = replace(run, variant="midpoint", eta=0.0, dualfast=None, threshold=None)
    for option in ("variant", "eta", "dualfast", "threshold"):
        given = getattr(run, option)
        if given != getattr(plain, option) and option not in solver.options:
            known = ", ".join(name for name, item in SOLVERS.items() if option in item.options)
            raise ValueError(f"{name}: found {option} {given}, expected none; {known} take it")
    return solver.make(run)

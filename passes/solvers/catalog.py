"""Every solver by its recipe name. To add one: a file that makes a `SolverStep`, a line here."""

from collections.abc import Callable

from optimize.ir.denoise import Levels, Prediction
from optimize.ir.solver_step import SolverStep, plain_step
from optimize.passes.solvers.adams_bashforth import adams_bashforth
from optimize.passes.solvers.ddim import ddim
from optimize.passes.solvers.dpm_solver_pp import dpm_solver_pp
from optimize.passes.solvers.euler import euler


def multistep(levels: Levels, prediction: Prediction, order: int) -> SolverStep:
    """The multistep solver that suits the model: in sigma for flow, in log-SNR for the others."""
    solver = adams_bashforth if prediction == "flow" else dpm_solver_pp
    return solver(levels, prediction, order)


SOLVERS: dict[str, Callable[[Levels, Prediction, int], SolverStep]] = {
    "same": lambda levels, prediction, order: plain_step(levels, prediction),
    "euler": lambda levels, prediction, order: euler(levels, prediction),
    "ddim": lambda levels, prediction, order: ddim(levels, prediction),
    "dpm_solver_pp": dpm_solver_pp,
    "adams_bashforth": adams_bashforth,
    "multistep": multistep,
}
"""Recipe name → (levels, prediction, order) → solver. "same" is the captured program's own."""

HIGHEST_ORDER = {
    "same": 1,
    "euler": 1,
    "ddim": 1,
    "dpm_solver_pp": 3,
    "adams_bashforth": 3,
    "multistep": 3,
}
"""Recipe name → the highest order it has."""

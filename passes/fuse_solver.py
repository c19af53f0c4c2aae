"""Makes one graph of a denoising step: denoiser, guidance, prediction conversion, solver update.

    prediction = denoiser(latent, timestep, …)          latent, history = step(
    latent = solver(latent, prediction, row)    ───▶        latent, history, timestep, …, row)

The loop then makes one engine call per step and no intermediate tensor leaves the engine. With
another solver or step count the noise levels and the coefficient table are computed anew, in
float64.

Changes: "denoiser" graphs become "step" graphs; the table "coefficients"; earlier clean estimates
    become loop state for multistep solvers.
Declines when: there is no denoising loop; the solver is already fused.
Numerics: exact with solver "same" and the same steps; otherwise another discretisation of the same
    differential equation.
Source: Lu et al. (2022), DPM-Solver++, for the multistep solvers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np

from optimize.ir.builder import Builder, fake_mode_of
from optimize.ir.denoise import DenoiseLoop, check_steps
from optimize.ir.graph import Graph
from optimize.ir.program import Program, denoising_repeat, with_repeat
from optimize.ir.solver_step import (
    SolverStep,
    captured_step,
    constant_error,
    history_slot,
    stored_step,
)
from optimize.passes.pass_base import Declined, OracleResult, Pass, Rewritten
from optimize.passes.solvers.catalog import HIGHEST_ORDER, SOLVERS
from optimize.runtime.loop import Binding, Call, Destination, Slot


@dataclass(frozen=True)
class FuseSolver(Pass):
    """Options of `fuse_solver`.

    Args:
        solver: "same" keeps the captured one; "ddim" and "dpm_solver_pp" suit every model,
            "euler" and "adams_bashforth" flow models; "multistep" is adams_bashforth for flow
            models and dpm_solver_pp for the others.
        order: of a multistep solver, in [1, 3].
        steps: denoiser calls per sample, in [1, 10000]; None keeps the captured number.
    """

    solver: Literal["same", "euler", "ddim", "dpm_solver_pp", "adams_bashforth", "multistep"] = (
        "same"
    )
    order: int | None = None
    steps: int | None = None

    numerics: ClassVar[Literal["exact", "rounding", "approximate"]] = "approximate"

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver: found {self.solver!r}, expected one of {', '.join(SOLVERS)}")
        highest = HIGHEST_ORDER[self.solver]
        if self.order is not None and not 1 <= self.order <= highest:
            raise ValueError(
                f"order: found {self.order}, expected a whole number in [1, {highest}] "
                f"for solver {self.solver!r}"
            )
        if self.steps is not None:
            check_steps(self.steps)

    def identity(self) -> Self:
        return replace(self, solver="same", order=None, steps=None)

    def declines(self, program: Program) -> str | None:
        if program.description is None:
            return "the program has no denoising loop"
        if "solver" not in program.graphs:
            return "the solver is already fused"
        predicts = program.description.prediction
        if self.solver in ("euler", "adams_bashforth") and predicts != "flow":
            return (
                f"{self.solver} needs a flow model, this one predicts {predicts!r}; use "
                "solver ddim or dpm_solver_pp"
            )
        return None

    def rewrite(self, program: Program) -> Rewritten:
        description = program.description
        assert description is not None
        steps = description.steps if self.steps is None else self.steps
        levels = description.levels(steps)
        try:
            step = self._step(description, steps)
        except ValueError as reason:
            raise Declined(str(reason)) from reason
        repeat = denoising_repeat(program)
        graphs = {
            name: graph
            for name, graph in program.graphs.items()
            if name != "solver" and not name.startswith("denoiser")
        }
        for name, graph in program.graphs.items():
            if name.startswith("denoiser"):
                graphs[fused_name(name)] = _fused(graph, step)
        bodies = {
            name: (_fused_call(body[0], step), *body[2:]) for name, body in repeat.bodies.items()
        }
        plan = program.plan
        chosen = ("step",) * steps if plan is None else plan.bodies(steps)
        missing = sorted(set(chosen) - set(bodies))
        if missing:
            raise Declined(
                f"{steps} steps need the loop bodies {missing}, which cache_regions did not make "
                f"for {len(repeat.steps)} steps; capture with steps={steps}"
            )
        used = set(chosen)
        bodies = {name: body for name, body in bodies.items() if name in used}
        called = {call.graph for body in bodies.values() for call in body if isinstance(call, Call)}
        graphs = {
            name: graph
            for name, graph in graphs.items()
            if name in called or not name.startswith("step")
        }
        loop = program.loop.model_copy(
            update={
                "slots": _slots(program, step),
                "body": with_repeat(
                    program, repeat.model_copy(update={"steps": chosen, "bodies": bodies})
                ),
            }
        )
        dtype = program.tables["coefficients"].dtype
        tables = {
            **program.tables,
            "timestep": levels.timestep.astype(dtype),
            "coefficients": step.table.astype(dtype),
        }
        return Rewritten(
            replace(
                program,
                graphs=graphs,
                loop=loop,
                tables=tables,
                description=replace(description, steps=steps),
            ),
            tuple(sorted(called)),
            {"solver": step.name, "steps": steps, "denoiser_calls": steps},
        )

    def oracles(
        self, before: Program, after: Program, request: Mapping[str, Any]
    ) -> list[OracleResult]:
        """A denoiser that is always right about a constant must be followed exactly.

        A captured solver may stray by itself (a scheduler whose step is not that of its levels):
        then it must stray no further.
        """
        description = after.description
        assert description is not None
        levels, prediction = description.levels(), description.prediction
        step = self._step(description, description.steps)
        stored = stored_step(step, after.tables["coefficients"])
        error = constant_error(levels, prediction, stored)
        if self.solver == "same":
            error = max(0.0, error - constant_error(levels, prediction, step))
        # Rows of epsilon models reach 1 / alpha of pure noise: float32 keeps seven of its digits.
        scale = max(1.0, float(np.abs(stored.table[:, :2]).max()))
        return [OracleResult("constant_is_exact", error / scale, 1e-6)]

    def _step(self, description: DenoiseLoop, steps: int) -> SolverStep:
        if self.solver == "same":
            return captured_step(description, steps)
        order = min(2, HIGHEST_ORDER[self.solver]) if self.order is None else self.order
        return SOLVERS[self.solver](description.levels(steps), description.prediction, order)


def fused_name(name: str) -> str:
    """The step graph's name for a denoiser graph: "denoiser_rows_128" → "step_rows_128"."""
    return "step" + name.removeprefix("denoiser")


def _fused(denoiser: Graph, step: SolverStep) -> Graph:
    builder = Builder(fake_mode_of(denoiser))
    arguments = {
        name: builder.input(name, denoiser.node(name).meta["val"]) for name in denoiser.inputs
    }
    latent = arguments["latent"]
    value = latent.meta["val"]
    width = step.table.shape[1]
    row = builder.input("coefficients", builder.fake((width,), value.dtype))
    history = [builder.input(history_slot(age + 1), value) for age in range(step.history)]
    outputs = builder.inline(denoiser, arguments)
    prediction = outputs.pop("prediction")
    moved, estimates = step.build(builder, latent, prediction, row, history)
    outputs = {"latent": moved, **outputs}
    outputs |= {history_slot(age): node for age, node in enumerate(estimates, start=1)}
    return builder.finish(outputs, denoiser.dimensions)


def _fused_call(call: Any, step: SolverStep) -> Call:
    assert isinstance(call, Call)
    history = [history_slot(age + 1) for age in range(step.history)]
    outputs = {name: place for name, place in call.outputs.items() if name != "prediction"}
    return Call(
        graph=fused_name(call.graph),
        inputs={
            **call.inputs,
            "coefficients": Binding(source="table", name="coefficients"),
            **{name: Binding(source="state", name=name) for name in history},
        },
        outputs={
            "latent": Destination(state="latent"),
            **outputs,
            **{name: Destination(state=name) for name in history},
        },
    )


def _slots(program: Program, step: SolverStep) -> tuple[Slot, ...]:
    assert program.description is not None
    captured = captured_step(program.description)
    dropped = {"prediction", *(history_slot(age + 1) for age in range(captured.history))}
    slots = tuple(slot for slot in program.loop.slots if slot.name not in dropped)
    latent = next(slot for slot in slots if slot.name == "latent")
    history = tuple(
        Slot(name=history_slot(age + 1), dtype=latent.dtype, shape=latent.shape)
        for age in range(step.history)
    )
    return (*slots, *history)

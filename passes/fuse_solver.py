"""Makes one graph of a denoising step: denoiser, guidance, prediction conversion, solver update.

    prediction = denoiser(latent, timestep, …)          latent, kept = step(
    latent = solver(latent, prediction, row)    ───▶        latent, kept, timestep, …, row)

The loop then makes one engine call per denoiser call and no intermediate tensor leaves the engine.
With another solver, schedule or number of steps the noise levels and the coefficients are computed
anew, in float64.

Changes: "denoiser" graphs become "step" graphs; the tables "timestep" and "coefficients"; what the
    solver keeps between calls becomes loop state, its fresh noise a noise of the loop.
Declines when: the program generates tokens; there is no denoising loop; the solver is already
    fused; the solver does not suit the model, the schedule or the number of steps.
Numerics: exact with solver "same" and the same steps; otherwise another discretisation of the same
    differential equation.
Source: Lu et al. (2022), DPM-Solver and DPM-Solver++; Yu et al. (2025), DualFast; Li et al. (2025),
    MRS; others in `optimize.passes.solvers`.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np

from optimize.ir.denoise import DenoiseLoop, check_steps
from optimize.ir.errors import InputModelError
from optimize.ir.exporting import Target
from optimize.ir.graph import Graph
from optimize.ir.noise_path import Levels
from optimize.ir.program import Program, denoising_repeat, with_repeat
from optimize.ir.schedules import Respaced, Schedule, Spacing, check_levels
from optimize.ir.solver_graph import (
    NOISE,
    fused_call,
    fused_graph,
    solver_call,
    solver_graph,
    solver_noise,
    solver_slots,
)
from optimize.ir.solver_step import (
    CONVERSION,
    SolverStep,
    Threshold,
    captured_step,
    constant_error,
)
from optimize.passes.choices import Choice, OneOf, WholeNumber
from optimize.passes.pass_base import Declined, OracleResult, Pass, Rewritten
from optimize.passes.solvers.adaptive import adaptive_program, check_start
from optimize.passes.solvers.catalog import SOLVERS, solve
from optimize.passes.solvers.consistency import better_reading
from optimize.passes.solvers.dualfast import MANY_STEPS, DualFast
from optimize.passes.solvers.solver_base import Sampling, Variant
from optimize.runtime.loop import Call

SolverName = Literal[
    "same",
    "euler",
    "heun",
    "adams_bashforth",
    "ddim",
    "dpm_solver",
    "dpm_solver_singlestep",
    "dpm_solver_pp",
    "dpm_solver_pp_singlestep",
    "dpm_solver_pp_ancestral",
    "unipc",
    "mr_sampler",
    "dpm_solver_adaptive",
]
ADAPTIVE = "dpm_solver_adaptive"
ABSOLUTE = 0.0078 / 0.05
"""Absolute to relative tolerance of the adaptive solver, as its authors have it for pixels."""

FEWEST_STEPS = 3
"""Worth searching: with fewer, results have little in common with those before."""

PIXEL_CHANNELS = (1, 3)
"""Grey and RGB; thresholding assumes pixels."""


@dataclass(frozen=True)
class FuseSolver(Pass):
    """Options of `fuse_solver`.

    Args:
        solver: "same" keeps the captured one; "euler", "heun" and "adams_bashforth" suit flow
            models, "mr_sampler" mean-reverting ones; the rest suit every model.
        order: of the solver, in [1, 3]; None means 2 where the solver has it.
        steps: denoiser calls per sample, in [1, 10000]; None keeps the captured number. A
            singlestep solver spends several on one of its steps.
        schedule: "same" keeps the captured spacing of noise levels.
        shift: of a flow schedule spaced in "time", > 0.
        variant: how second-order terms are weighted.
        eta: strength of fresh noise, >= 0; 0 is deterministic.
        dualfast: strength of DualFast's mixing, >= 0; None leaves it out.
        thresholding: quantile of dynamic thresholding, in (0, 1]; None leaves it out. For models of
            pixels in [-1, 1], not of latents.
        tolerance: relative error of a step of "dpm_solver_adaptive", which takes as many as it
            needs, in (0, 1]; order 2 or 3.
    """

    solver: SolverName = "same"
    order: int | None = None
    steps: int | None = None
    schedule: Literal["same"] | Spacing = "same"
    shift: float = 1.0
    variant: Variant = "midpoint"
    eta: float = 0.0
    dualfast: float | None = None
    thresholding: float | None = None
    tolerance: float = 0.05

    numerics: ClassVar[Literal["exact", "rounding", "approximate"]] = "approximate"

    def __post_init__(self) -> None:
        for name, known in (
            ("solver", get_args(SolverName)),
            ("schedule", ("same", *get_args(Spacing))),
            ("variant", get_args(Variant)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}: found {getattr(self, name)!r}, expected one of {', '.join(known)}"
                )
        highest = self._highest_order
        if self.order is not None and not 1 <= self.order <= highest:
            raise ValueError(
                f"order: found {self.order}, expected a whole number in [1, {highest}] "
                f"for solver {self.solver!r}"
            )
        if self.steps is not None:
            check_steps(self.steps)
        if self.solver == ADAPTIVE and (self.steps is not None or self.order == 1):
            raise ValueError(
                f"{ADAPTIVE}: found steps {self.steps} and order {self.order}, expected order 2 or "
                "3 and no steps: it takes as many as `tolerance` needs"
            )
        limits = {
            "shift": (1e-3, 1e3),
            "eta": (0.0, 100.0),
            "dualfast": (0.0, 10.0),
            "thresholding": (1e-6, 1.0),
            "tolerance": (1e-8, 1.0),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}: found {value}, expected a number in [{low}, {high}]")
        if self.solver in ("same", ADAPTIVE) and self._changes_numbers:
            raise ValueError(
                f"solver: found {self.solver!r} with eta, dualfast, thresholding or variant, "
                "expected a solver that takes them; for example ddim or dpm_solver_pp"
            )
        if self.schedule == "same" and self.shift != 1.0:
            raise ValueError(
                f"shift: found {self.shift} with schedule 'same', expected it with schedule 'time'"
            )

    @property
    def _highest_order(self) -> int:
        if self.solver == ADAPTIVE:
            return 3
        return 1 if self.solver == "same" else SOLVERS[self.solver].highest_order

    @property
    def _changes_numbers(self) -> bool:
        plain = (self.eta, self.dualfast, self.thresholding, self.variant)
        return plain != (0.0, None, None, "midpoint")

    @classmethod
    def choices(cls, program: Program, target: Target) -> Mapping[str, Choice]:
        """Solvers and spacings that suit the model, and fewer steps than it was captured with.

        The adaptive solver is left out: its calls are not known before it runs.
        """
        description = program.description
        if description is None:
            return {}
        solvers = [name for name in get_args(SolverName) if name != ADAPTIVE]
        fitting = [name for name in solvers if cls(solver=name).declines(program) is None]
        most = description.steps
        seen: list[Any] = []
        spaced: list[str] = []
        for name in ("same", *get_args(Spacing)):
            if cls(schedule=name).declines(program) is None:
                level = cls(schedule=name)._step(description).levels.sigma
                if not any(np.allclose(level, other) for other in seen):
                    seen.append(level)
                    spaced.append(name)
        return {
            "solver": OneOf(tuple(fitting)),
            "order": OneOf((None, 3)),
            "steps": WholeNumber(min(FEWEST_STEPS, most), most, log=True),
            "schedule": OneOf(tuple(spaced)),
        }

    def identity(self) -> Self:
        return type(self)()

    def declines(self, program: Program) -> str | None:
        if program.generates_tokens:
            return "the program generates tokens, expected one that denoises"
        if "solver" not in program.graphs:
            fused = any(name.startswith("step") for name in program.graphs)
            return "the solver is already fused" if fused else "the program has no denoising loop"
        if program.description is None:
            fits = self == self.identity()
            return None if fits else "the program has a solver of its own: only 'same' fits it"
        if self.solver == ADAPTIVE and program.plan is not None:
            return f"{ADAPTIVE} has no fixed number of steps, which cache_regions plans for"
        try:
            if self.solver == ADAPTIVE:
                check_start(program.description.noise_schedule.path)
            else:
                self._step(program.description)
        except (ValueError, InputModelError) as reason:
            return str(reason)
        return None

    def rewrite(self, program: Program) -> Rewritten:
        description = program.description
        if description is None:
            return _as_it_is(program)
        if self.solver == ADAPTIVE:
            return self._adaptive(program)
        step = self._step(description)
        if self.thresholding is not None:
            _warn_of_latents(program)
        if self.dualfast and step.calls > MANY_STEPS:
            warnings.warn(
                f"dualfast: found {step.calls} steps; above {MANY_STEPS} a solver of second order "
                "is closer without it",
                stacklevel=2,
            )
        solver = solver_graph(program.graphs["denoiser"], step)
        repeat = denoising_repeat(program)
        bodies = {
            name: (_fused_call(body[0], solver_call(step)), *body[2:])
            for name, body in repeat.bodies.items()
        }
        plan = program.plan
        chosen = ("step",) * step.calls if plan is None else plan.bodies(step.calls)
        missing = sorted(set(chosen) - set(bodies))
        if missing:
            raise Declined(
                f"{step.calls} steps need the loop bodies {missing}, which cache_regions did not "
                f"make for {len(repeat.steps)} steps; capture with steps={step.calls}"
            )
        bodies = {name: body for name, body in bodies.items() if name in set(chosen)}
        called = {call.graph for body in bodies.values() for call in body if isinstance(call, Call)}
        graphs = _fused_graphs(program, solver, called)
        captured = captured_step(description)
        latent = next(slot for slot in program.loop.slots if slot.name == "latent")
        dropped = {"prediction", *(slot.name for slot in solver_slots(captured, latent))}
        slots = tuple(slot for slot in program.loop.slots if slot.name not in dropped)
        noise = tuple(item for item in program.loop.noise if item.name != NOISE)
        loop = program.loop.model_copy(
            update={
                "slots": (*slots, *solver_slots(step, latent)),
                "noise": (*noise, *solver_noise(step, latent)),
                "body": with_repeat(
                    program, repeat.model_copy(update={"steps": chosen, "bodies": bodies})
                ),
            }
        )
        dtype = program.tables["coefficients"].dtype
        made = {"timestep": step.levels.timestep, **step.tables}
        tables = {name: item for name, item in program.tables.items() if name != CONVERSION}
        tables |= {name: table.astype(dtype) for name, table in made.items()}
        new = replace(
            program,
            graphs=graphs,
            loop=loop,
            tables=tables,
            description=replace(description, steps=step.calls),
        )
        details = {"solver": step.name, "steps": step.calls, "denoiser_calls": step.calls}
        return Rewritten(new, tuple(sorted(called)), details)

    def _adaptive(self, program: Program) -> Rewritten:
        order = 2 if self.order is None else self.order
        made = adaptive_program(program, order, (ABSOLUTE * self.tolerance, self.tolerance))
        sites = tuple(sorted(name for name in made.graphs if name not in program.graphs))
        return Rewritten(made, sites, {"solver": f"dpm_solver_{order - 1}{order}"})

    def oracles(
        self, before: Program, after: Program, request: Mapping[str, Any]
    ) -> list[OracleResult]:
        """A denoiser that is always right about a constant must be followed exactly.

        A captured solver may stray by itself (a scheduler whose step is not that of its levels):
        then it must stray no further.
        """
        description = after.description
        if description is None:
            return []
        better = better_reading(before, request)
        if better is not None:
            warnings.warn(
                f"prediction: the model is described to predict {description.prediction!r}, but "
                f"its outputs fit {better!r}; describe it with DenoiseLoop(prediction={better!r})",
                stacklevel=2,
            )
        if self.solver == ADAPTIVE:
            return []
        step = self._step(description)
        stored = step.stored(after.tables)
        error = constant_error(stored, description.prediction)
        if self.solver == "same":
            error = max(0.0, error - constant_error(step, description.prediction))
        # Rows of epsilon models reach 1 / alpha of pure noise: float32 keeps seven of its digits.
        scale = max(1.0, float(np.abs(stored.matrices[:, 0, :2]).max()))
        return [OracleResult("constant_is_exact", error / scale, 1e-6)]

    def _step(self, description: DenoiseLoop) -> SolverStep:
        """The solver on the noise levels of the run.

        Raises:
            ValueError, InputModelError: they do not go together.
        """
        steps = description.steps if self.steps is None else self.steps
        schedule: Schedule = description.noise_schedule
        if self.schedule != "same":
            schedule = Respaced(schedule, self.schedule, self.shift)
        if self.solver == "same":
            return captured_step(replace(description, schedule=schedule), steps)

        def levels(count: int) -> Levels:
            found = schedule.levels(count)
            check_levels(found)
            return found

        run = Sampling(
            levels,
            steps,
            description.prediction,
            order=min(2, self._highest_order, steps) if self.order is None else self.order,
            variant=self.variant,
            eta=self.eta,
            dualfast=None if self.dualfast is None else DualFast(self.dualfast),
            threshold=None if self.thresholding is None else Threshold(self.thresholding),
        )
        return solve(self.solver, run)


def _as_it_is(program: Program) -> Rewritten:
    """Denoiser and solver as one graph, where the solver is no table of coefficients."""
    repeat = denoising_repeat(program)
    denoise, solve_call = repeat.bodies["step"]
    assert isinstance(denoise, Call) and isinstance(solve_call, Call)
    step = _fused_call(denoise, solve_call)
    graphs = {name: graph for name, graph in program.graphs.items() if name != "solver"}
    graphs["step"] = fused_graph(graphs.pop("denoiser"), program.graphs["solver"])
    body = with_repeat(program, repeat.model_copy(update={"bodies": {"step": (step,)}}))
    slots = tuple(slot for slot in program.loop.slots if slot.name != "prediction")
    loop = program.loop.model_copy(update={"slots": slots, "body": body})
    details = {"solver": "same", "denoiser_calls": len(repeat.steps)}
    return Rewritten(replace(program, graphs=graphs, loop=loop), ("step",), details)


def fused_name(name: str) -> str:
    """The step graph's name for a denoiser graph: "denoiser_rows_128" → "step_rows_128"."""
    return "step" + name.removeprefix("denoiser")


def _fused_call(denoiser: Any, solver: Call) -> Call:
    assert isinstance(denoiser, Call)
    return fused_call(denoiser, solver, fused_name(denoiser.graph))


def _fused_graphs(program: Program, solver: Graph, called: set[str]) -> dict[str, Graph]:
    """Every graph of the program, the denoisers fused; those no body calls are left out."""
    graphs = {}
    for name, graph in program.graphs.items():
        if not name.startswith("denoiser"):
            if name != "solver":
                graphs[name] = graph
        elif fused_name(name) in called:
            graphs[fused_name(name)] = fused_graph(graph, solver)
    return graphs


def _warn_of_latents(program: Program) -> None:
    """Warns where the program does not make pixels itself."""
    shape = program.graphs["denoiser"].node("latent").meta["val"].shape
    if len(shape) < 4 or shape[1] not in PIXEL_CHANNELS or "decoder" in program.graphs:
        warnings.warn(
            f"thresholding: found latents of shape [{', '.join(map(str, shape))}], expected "
            "pixels in [-1, 1] with 1 or 3 channels; latents have no such bound, so leave it out",
            stacklevel=3,
        )

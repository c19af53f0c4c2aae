"""The figures of `optimize solvers`: every solver on one model, by number of denoiser calls.

Every run starts from the same noise with the same conditioning. The exact solution is a solver of
third order with many calls; how far it is from itself with half the calls says how exact it is.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import isclose
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from optimize import __version__
from optimize.commands.models import LoadedModel
from optimize.commands.progress import StageBar
from optimize.ir.errors import InputModelError, QualityError, RecipeError
from optimize.ir.program import Program
from optimize.ir.solver_step import captured_step
from optimize.measure.quality import Interval, psnr, trajectory_distance
from optimize.measure.solver_comparison import Score, SolverComparison, SolverLine
from optimize.passes.calibration import Calibration, signature_request
from optimize.passes.fuse_solver import ADAPTIVE, FuseSolver
from optimize.passes.solvers.catalog import SOLVERS
from optimize.passes.solvers.dualfast import DualFast
from optimize.recipes.recipe import Recipe
from optimize.runtime.loop import Signature

BATCH = 60
"""Samples per request, where the examples do not say how many."""

BATCH_SIZE = "batch"
"""The name of that size in signatures."""

Array = NDArray[np.float32]

NO_COLUMN = "takes as many calls as its tolerance needs, so it has no column"
NO_JUDGE = "has fresh noise, and the model has no judge of samples as a set"


@dataclass(frozen=True)
class Asked:
    """What is sampled in every run.

    Attributes:
        loaded: the model, with its examples and its judge.
        samples: at least 2.
        seed: of the first request's noise.
        output: the result that is compared.
    """

    loaded: LoadedModel
    samples: int
    seed: int
    output: str

    def sample(self, program: Program) -> Array:
        """[samples, ...] from a program, in requests of as many as the model takes."""
        parts: list[Array] = []
        drawn = 0
        while drawn < self.samples:
            inputs = self._inputs(program.signature, drawn, min(BATCH, self.samples - drawn))
            request = signature_request(
                program.signature,
                program.loop,
                Calibration(inputs=inputs),
                self.loaded.example_inputs or {},
                self.seed + len(parts),
            )
            parts.append(program(**request)[self.output].float().numpy())
            drawn += len(parts[-1])
        return np.concatenate(parts)[: self.samples]

    def _inputs(self, signature: Signature, first: int, count: int) -> Mapping[str, Any]:
        """What a request for `count` samples says, besides the examples."""
        if self.loaded.judge is not None:
            return self.loaded.judge.fields(first, count)
        given = any(BATCH_SIZE in str(size) for item in signature.inputs for size in item.shape)
        if given or BATCH_SIZE not in signature.dimensions:
            return {}
        return {BATCH_SIZE: min(count, signature.dimensions[BATCH_SIZE][1])}


def candidates(names: Sequence[str], schedule: str) -> dict[str, FuseSolver]:
    """Line name → the pass, its steps still open: what is compared of the solvers named.

    Every order above the first (which is DDIM's or Euler's, but for UniPC's corrector), DualFast of
    its default strength on DPM-Solver++, and the stochastic form where there is one.
    """
    lines = {}
    for name in names:
        solver = SOLVERS[name]
        forms: list[tuple[str, dict[str, Any]]] = [(name, {})]
        if solver.highest_order > 1:
            orders = range(2, solver.highest_order + 1)
            forms = [(f"{name} {order}", {"order": order}) for order in orders]
        if name == "dpm_solver_pp":
            strength = DualFast().strength
            forms.append((f"{name} 2, dualfast {strength}", {"order": 2, "dualfast": strength}))
        if "eta" in solver.options:
            noisy = [(f"{title}, eta 1", {**options, "eta": 1.0}) for title, options in forms[:1]]
            # Without its noise the ancestral solver is DPM-Solver++ 2S, which has a line.
            forms = noisy if name == "dpm_solver_pp_ancestral" else forms + noisy
        for title, options in forms:
            lines[title] = FuseSolver(solver=name, schedule=schedule, **options)  # type: ignore[arg-type]
    return lines


def measure_solvers(
    program: Program,
    loaded: LoadedModel,
    *,
    names: Sequence[str],
    schedule: str,
    calls: tuple[int, ...],
    samples: int,
    seed: int,
    reference_calls: int,
    progress: StageBar,
) -> SolverComparison:
    """Runs every solver that suits a model at every number of calls.

    Args:
        program: captured, its solver not fused.
        loaded: what it was captured from.
        names: of the catalogue; none means all.
        schedule: as in `FuseSolver`, for every run but the captured program's own.
        calls: rising.
        samples: per run, at least 2.
        seed: of the noise.
        reference_calls: of the run that stands for the exact solution.
        progress: told what is running.
    Raises:
        InputModelError: the program has no denoising loop.
        RecipeError: no reference can be run, or no solver.
    """
    description = program.description
    if description is None:
        raise InputModelError(
            "solvers: found a program without a denoising loop, expected one to solve"
        )
    suitable, refused, left_out = _chosen(program, loaded, names, schedule, calls)
    outputs = program.signature.outputs
    asked = Asked(loaded, samples, seed, "latent" if "latent" in outputs else outputs[0])
    progress.wait("reference")
    item = reference_solver(description.prediction, schedule, reference_calls)
    exact, half = (
        asked.sample(_rewritten(program, item, count))
        for count in (reference_calls, reference_calls // 2)
    )
    progress.wait("captured program")
    captured = asked.sample(program)
    lines = []
    for place, (name, entry) in enumerate(suitable.items()):
        progress(f"sample: {name}", place, len(suitable))
        lines.append(_line(name, entry, refused[name], program, asked, calls, exact))
    own = captured_step(description)
    comparison = SolverComparison(
        model=loaded.name,
        samples=samples,
        seed=seed,
        schedule=schedule,
        calls=calls,
        reference=f"{item.solver} {item.order} with {reference_calls} calls",
        reference_error=trajectory_distance(half, exact),
        captured=f"{own.name} with {own.calls} calls",
        captured_score=_score(captured, exact, asked, noisy=False),
        lines=tuple(lines),
        left_out=left_out,
        notes=(
            *program.notes,
            *_twins(lines),
            *_start_notes(program, item, (*calls, reference_calls)),
            *_judge_notes(loaded, suitable, samples),
        ),
        environment=_environment(),
    )
    recipes = {}
    for count in calls:
        best = comparison.best(count)
        if best is not None:
            recipes[count] = recipe_text(best, count)
    return replace(comparison, recipes=recipes)


def reference_solver(prediction: str, schedule: str, calls: int) -> FuseSolver:
    """The solver of the run that stands for the exact solution."""
    name = "adams_bashforth" if prediction == "flow" else "dpm_solver_pp"
    return FuseSolver(solver=name, order=3, steps=calls, schedule=schedule)  # type: ignore[arg-type]


def recipe_text(line: SolverLine, calls: int) -> str:
    """A recipe of a line as YAML, with the options that are not at their default."""
    data = {"passes": [{"fuse_solver": {**line.options, "steps": calls}}], "target": "onnx"}
    Recipe.load(data)  # what the page shows must load
    return yaml.safe_dump(data, sort_keys=False)


def _chosen(
    program: Program,
    loaded: LoadedModel,
    names: Sequence[str],
    schedule: str,
    calls: Sequence[int],
) -> tuple[dict[str, FuseSolver], dict[str, dict[int, str]], dict[str, str]]:
    """What is measured, where each cannot be, and what is left out for which reason.

    Raises:
        RecipeError: nothing is left.
    """
    items = candidates(names or list(SOLVERS), schedule)
    left_out = {} if names else {ADAPTIVE: NO_COLUMN}
    refused = {name: _refused(item, program, loaded, calls) for name, item in items.items()}
    suitable = {name: item for name, item in items.items() if len(refused[name]) < len(calls)}
    solvers = {item.solver for item in suitable.values()}
    for name, item in items.items():
        if name not in suitable:
            # One reason for a solver that has no line at all.
            title = name if item.solver in solvers else item.solver
            left_out.setdefault(title, refused[name][calls[-1]])
    if not suitable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise RecipeError(f"solvers: found none that suits the model: {reasons}")
    return suitable, refused, left_out


def _refused(
    item: FuseSolver, program: Program, loaded: LoadedModel, calls: Sequence[int]
) -> dict[int, str]:
    """Calls → why a candidate cannot be measured there."""
    if item.eta > 0 and loaded.judge is None:
        return dict.fromkeys(calls, NO_JUDGE)
    reasons = {count: replace(item, steps=count).declines(program) for count in calls}
    return {count: reason for count, reason in reasons.items() if reason is not None}


def _line(
    name: str,
    item: FuseSolver,
    refused: Mapping[int, str],
    program: Program,
    asked: Asked,
    calls: Sequence[int],
    exact: Array,
) -> SolverLine:
    """A candidate at every number of calls where it is not refused."""
    scores, declined = {}, dict(refused)
    for count in calls:
        if count in refused:
            continue
        found = asked.sample(_rewritten(program, item, count))
        try:
            scores[count] = _score(found, exact, asked, item.eta > 0)
        except QualityError as error:  # samples that are not finite have no score
            declined[count] = str(error)
    defaults = {entry.name: entry.default for entry in fields(FuseSolver)}
    options = {
        key: value
        for key in defaults
        if key != "steps" and (value := getattr(item, key)) != defaults[key]
    }
    return SolverLine(name, options, scores, declined)


def _rewritten(program: Program, item: FuseSolver, calls: int) -> Program:
    """The program with a solver of so many calls.

    Raises:
        RecipeError: the solver does not suit it.
    """
    chosen = replace(item, steps=calls)
    reason = chosen.declines(program)
    if reason is not None:
        raise RecipeError(f"solvers: {reason}")
    return chosen.rewrite(program).program


def _score(found: Array, exact: Array, asked: Asked, noisy: bool) -> Score:
    judge = asked.loaded.judge
    frechet: Interval | None = None if judge is None else judge.frechet(found)
    if noisy:
        return Score(frechet=frechet)
    return Score(trajectory_distance(found, exact), psnr(found, exact), frechet)


def _twins(lines: Sequence[SolverLine]) -> list[str]:
    """Notes on lines with the same distances: on some models two solvers are one."""
    notes = []
    for place, line in enumerate(lines):
        for other in lines[:place]:
            pairs = [
                (line.scores[count].value("distance"), other.scores[count].value("distance"))
                for count in set(line.scores) & set(other.scores)
            ]
            if pairs and all(
                ours is not None and theirs is not None and isclose(ours, theirs, rel_tol=1e-4)
                for ours, theirs in pairs
            ):
                notes.append(f"{line.name} and {other.name} give the same on this model.")
                break
    return notes


def _start_notes(program: Program, reference: FuseSolver, calls: Sequence[int]) -> list[str]:
    """A note where runs of different length begin at different noise levels."""
    first = replace(reference, order=1)
    starts = {
        count: float(_rewritten(program, first, count).tables["timestep"][0]) for count in calls
    }
    if len({round(start, 3) for start in starts.values()}) == 1:
        return []
    found = ", ".join(f"{start:.4g} with {count} calls" for count, start in starts.items())
    return [
        f"The schedule begins at another timestep for each number of calls ({found}), so part of "
        "each distance is the schedule's, not the solver's; with another --schedule all begin at "
        "the same."
    ]


def _judge_notes(loaded: LoadedModel, items: Mapping[str, FuseSolver], samples: int) -> list[str]:
    if loaded.judge is None:
        return []
    notes = [
        f"A Fréchet distance of {samples} samples is biased upwards: compare those of one page "
        "only, and mind their intervals."
    ]
    if any(item.eta > 0 for item in items.values()):
        notes.append(
            "With eta above 0 a solver adds fresh noise and leaves the path of the exact solution, "
            "so only its samples as a set are judged."
        )
    return notes


def _environment() -> dict[str, str]:
    return {
        "optimize": __version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }

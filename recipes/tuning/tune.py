"""Searches the options of all passes for the fastest recipe within a quality budget.

Cheap questions come first: what the cost model predicts, then the quality in PyTorch, and only the
best few are exported and timed on the target. The fastest of them is applied once more with every
check of the passes, and becomes the recipe.
"""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optimize.ir.errors import RecipeError
from optimize.ir.exporting import Target
from optimize.ir.program import Program
from optimize.measure.machines import Machine
from optimize.measure.receipt import fingerprint
from optimize.measure.this_cpu import this_cpu
from optimize.passes.calibration import Calibration, requests
from optimize.passes.pipeline import Progress
from optimize.recipes.recipe import Budget, Recipe, names
from optimize.recipes.tuning.finish import Finish, Tuned
from optimize.recipes.tuning.front import pareto_front
from optimize.recipes.tuning.judging import Judge
from optimize.recipes.tuning.measuring import Frechet
from optimize.recipes.tuning.search import Search, known_recipe
from optimize.recipes.tuning.space import search_space
from optimize.recipes.tuning.study import TuningStudy
from optimize.report.tuning import Tuning

SAMPLES = 8
"""Calibration requests: options found on one alone may be good for that one."""

FRESH_SEED = 1_000_000
"""Of requests that the search did not see, counted from the seed of those it did."""

SEARCH_SHARE, TIMING_SHARE = 0.7, 0.1
"""Of the minutes: the search's, and the timing's; export and checks take the rest."""


def tune(
    program: Program,
    budget: Budget,
    *,
    metric: str | None = None,
    model: str = "model",
    target: Target = "onnx",
    trials: int = 60,
    minutes: float = 10.0,
    storage: Path | None = None,
    seed: int = 0,
    starts: Sequence[Recipe] = (),
    calibration: Calibration | None = None,
    examples: Mapping[str, Any] | None = None,
    threads: int = 1,
    frechet: Frechet | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Searches a recipe for a captured program.

    Args:
        program: captured, without any pass; stays as it is.
        budget: what the results may lose.
        metric: of the budget, what is traded against speed; the others are limits only. The first
            that it has by default.
        model: its name; a study belongs to one model.
        target: what the best recipes are exported for, and timed on.
        trials: of the study, over all processes and runs of it, at least 1.
        minutes: for all of it, above 0; what has begun is ended.
        storage: journal that keeps the trials, for a later run or for further processes; None keeps
            them in memory.
        seed: of the search, in [0, 2**31).
        starts: recipes to try first; those of the library that apply come besides.
        calibration: requests on which results are compared; eight by default.
        examples: example inputs; those that a request takes are calibration inputs.
        threads: of one operator on the target, at least 1.
        frechet: judges the samples of a session.
        progress: told what is running.
    Raises:
        RecipeError: a value out of range, a start that does not apply, a program without anything
            to search, a metric that its results do not have, or a storage of another study.
    """
    tell: Progress = progress or _silent
    begun = time.monotonic()
    check_search(budget, trials, minutes, seed, threads)
    metric = metric or next(iter(budget.limits()))
    calibration = calibration or Calibration(samples=SAMPLES)
    space = search_space(program, target)
    known = _known(program, starts)
    if not space.passes:
        reasons = "; ".join(f"{name}: {why}" for name, why in space.left_out.items())
        raise RecipeError(f"{model}: found no pass to search ({reasons})")
    bound_to = {
        "model": model,
        "program": _digest(program),
        "metric": metric,
        "target": target,
        "calibration": repr(calibration),
    }
    study = TuningStudy(storage, bound_to, metric, trials, seed)
    tell("unoptimised program", 0, trials)
    # All processes of a study predict for the machine of its first.
    machine = Machine(**study.shared("machine", lambda: asdict(this_cpu(threads))))
    judge = Judge(program, requests(program, calibration, examples), machine)
    judge.check(budget.limits())
    for recipe in known:
        study.enqueue(space.parameters(recipe) or {}, recipe.to_dict()["passes"], recipe.name)

    def asked(passes: Sequence[Any]) -> Recipe:
        read = Recipe.load({"passes": list(passes)})
        return replace(read, budget=budget, target=target, calibration=calibration, name="tuned")

    search = Search(judge, space, study, metric, budget, asked)
    ended = search.run(begun + 60 * SEARCH_SHARE * minutes, tell)
    attempts = study.attempts()
    judged = [item for item in attempts if item.state == "judged"]
    tuning = Tuning(
        model=model,
        target=target,
        metric=metric,
        limits=budget.limits(),
        predicted_seconds=judge.seconds,
        attempts=attempts,
        front=tuple(item.number for item in pareto_front(judged, metric)),
        left_out=space.left_out,
        notes=(ended,) if ended else (),
    )
    finish = Finish(judge, asked, budget, tell)
    fresh = replace(calibration, seed=calibration.seed + FRESH_SEED)
    found = finish.run(
        tuning,
        threads=threads,
        seconds=60 * TIMING_SHARE * minutes,
        fresh=requests(program, fresh, examples),
        frechet=frechet,
        deadline=begun + 60 * minutes,
    )
    elapsed = time.monotonic() - begun
    environment = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{fingerprint()}, {threads} {'thread' if threads == 1 else 'threads'}",
        "predictions for": machine.name,
        "trials": str(len(attempts)),
        "seconds": f"{elapsed:.0f}",
        "calibration requests": str(calibration.samples),
    }
    return replace(found, tuning=replace(found.tuning, environment=environment))


def _digest(program: Program) -> str:
    """Tells programs apart: what they were captured as, and how their loop calls it."""
    source, loop = program.source_digest, program.loop.model_dump_json()
    return hashlib.sha256(f"{source.graphs} {source.weights} {loop}".encode()).hexdigest()[:16]


def _known(program: Program, starts: Sequence[Recipe]) -> list[Recipe]:
    """The recipes to try first: those given, and those of the library that apply.

    Raises:
        RecipeError: one that was given does not apply.
    """
    known: dict[str, Recipe] = {}
    for recipe in starts:
        found = known_recipe(recipe, program)
        if isinstance(found, str):
            raise RecipeError(f"--start {recipe.name}: {found}; leave it out")
        known[recipe.name] = found
    for name in names():
        found = known_recipe(Recipe.load(name), program)
        if not isinstance(found, str):
            known.setdefault(name, found)
    return list(known.values())


def check_search(budget: Budget, trials: int, minutes: float, seed: int, threads: int) -> None:
    """Refuses arguments of `tune` before any work is done for them.

    Raises:
        RecipeError: says which, and what was expected.
    """
    if budget.empty:
        raise RecipeError(
            "budget: found none, expected a limit such as psnr=30: without one the fastest recipe "
            "is the one that computes nothing"
        )
    if not minutes > 0 or math.isinf(minutes):
        raise RecipeError(f"minutes: found {minutes}, expected a number above 0")
    for name, value, low, high in (
        ("trials", trials, 1, 1_000_000),
        ("seed", seed, 0, 2**31 - 1),
        ("threads", threads, 1, 1024),
    ):
        if not low <= value <= high:
            raise RecipeError(f"{name}: found {value}, expected a number in [{low}, {high}]")


def _silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""

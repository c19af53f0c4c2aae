"""`optimize(model, recipe)`: capture, passes, budget. The whole compiler in one call."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from optimize.capture.capture_model import AnyLoop, capture_model
from optimize.ir.decode import DecodeLoop
from optimize.ir.program import Program
from optimize.passes.cache_regions import active_maps
from optimize.passes.calibration import Request, requests
from optimize.passes.catalog import latest_position
from optimize.passes.drafts.catalog import register_loader
from optimize.passes.pipeline import Entry, Measure, Progress, run_passes
from optimize.passes.shard_sequence import ShardSequence
from optimize.recipes.budget import check_budget
from optimize.recipes.lock import note_on
from optimize.recipes.recipe import Budget, Recipe


def _zoo_draft(name: str, loop: DecodeLoop) -> Program | Path:
    """Loads a draft of the zoo; the zoo is imported by those only who ask for it."""
    from optimize.recipes.zoo.drafts import load_zoo_draft

    return load_zoo_draft(name, loop)


register_loader("zoo:", _zoo_draft)


def optimize(
    model: Any,
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe = "balanced",
    *,
    example_inputs: Mapping[str, Any] | None = None,
    loop: AnyLoop | None = None,
    budget: Budget | Mapping[str, Any] | None = None,
    verify: bool = True,
    progress: bool | Progress = True,
) -> Program:
    """Makes a model faster, checks that it is still right, and says what was done.

    Args:
        model: a `torch.nn.Module` that denoises, a diffusers pipeline or a transformers language
            model (or its folder), an object with `decoder`, `vision` and `image_shape`, or a
            captured program.
        recipe: a named recipe, a path of a YAML file, a mapping, or a `Recipe`.
        example_inputs: argument name → tensor, for a bare module; also the calibration inputs.
        loop: how a bare module is sampled: a `DenoiseLoop`, a `TorusFlowLoop`, a `DecodeLoop` of a
            language model, or an `UnmaskLoop` of one that fills in masked text.
        budget: limits on the change of the result, instead of the recipe's.
        verify: run oracles, identity checks and the comparison with the unrewritten program. They
            sample with the model several times. Without, no budget is checked.
        progress: a bar on standard error (none when that is no terminal), or a function to tell.
    Returns:
        The rewritten program; `report` says what each pass did.
    Raises:
        RecipeError: the recipe cannot be read, or a required pass does not apply.
        InputModelError: the model or its example inputs cannot be captured.
        NumericsError: a check of a pass failed.
        QualityError: the result changed by more than the budget.
    """
    checked = load_recipe(recipe, budget)
    program = capture_model(model, example_inputs, loop=loop)
    return apply_recipe(program, checked, example_inputs, verify=verify, progress=progress)


def load_recipe(recipe: Any, budget: Budget | Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from anything that names one, with another budget where one is given."""
    checked = Recipe.load(recipe)
    if budget is None:
        return checked
    if isinstance(budget, Mapping):
        budget = Recipe.load({"passes": [], "budget": budget}).budget
    return replace(checked, budget=budget)


def apply_recipe(
    program: Program,
    recipe: Recipe,
    examples: Mapping[str, Any] | None = None,
    *,
    verify: bool = True,
    measure: Measure | None = None,
    progress: bool | Progress = False,
) -> Program:
    """The program after the passes of a recipe, within its budget.

    Args:
        program: stays as it is.
        recipe: what to do.
        examples: example inputs; those that a request takes are calibration inputs.
        verify: compare results; without, no budget is checked.
        measure: seconds per request on the target; drops optional passes that do not pay.
        progress: as for `optimize`.
    Raises:
        RecipeError: the recipe is locked to another model, or a required pass does not apply.
        QualityError: the result changed by more than the budget.
    """
    note = None
    if recipe.lock is not None:
        note = note_on(recipe.lock, program.source_digest, recipe.name, verify)
    calibration = requests(program, recipe.calibration, examples)
    with _Bar(progress) as bar:
        after = run_passes(
            program,
            all_passes(recipe),
            verify=verify,
            calibration=calibration,
            measure=measure,
            progress=bar,
        )
    if note is not None:
        after = replace(after, notes=(*after.notes, note))
    if verify:
        check_budget(f"recipe {recipe.name}", recipe.budget, after.history)
        return with_active_tokens(after, calibration[0])
    if not recipe.budget.empty:
        note = f"the budget of recipe {recipe.name} was not checked: verify is off"
        return replace(after, notes=(*after.notes, note))
    return after


def all_passes(recipe: Recipe) -> list[Entry]:
    """The passes of a recipe, and the one that its `parallel` asks for at its place among them."""
    entries = list(recipe.passes)
    if recipe.parallel.sequence > 1:
        item = ShardSequence(recipe.parallel.sequence, recipe.parallel.exchange)
        names = [entry.item.name for entry in entries]
        entries.insert(latest_position(item.name, names), Entry(item))
    return entries


def with_active_tokens(program: Program, request: Request) -> Program:
    """The program with a map of the recomputed tokens in the record of its region cache."""
    history = list(program.history)
    for index, record in enumerate(history):
        grid = record.details.get("grid")
        if record.name != "cache_regions" or record.declined is not None or not grid:
            continue
        fields = {name: value for name, value in request.items() if name != "seed"}
        maps = np.asarray(active_maps(program, fields, request["seed"]), dtype=bool)
        shape = (len(maps), -1, grid[-1])
        details = {**record.details, "active": maps.reshape(shape).tolist()}
        history[index] = replace(record, details=details)
    return replace(program, history=tuple(history))


class _Bar:
    """Tells a progress bar, a function, or nobody."""

    def __init__(self, progress: bool | Progress) -> None:
        self.progress = progress
        self.bar: Any = None

    def __enter__(self) -> Progress | None:
        if callable(self.progress):
            return self.progress
        return self._tell if self.progress else None

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self.bar is None:
            self.bar = tqdm(total=total, disable=None, leave=False, unit="stage")
        self.bar.set_description(stage, refresh=False)
        self.bar.update(done - self.bar.n)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

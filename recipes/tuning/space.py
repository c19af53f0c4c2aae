"""What is searched: which passes run, and the options that they say are worth searching."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import Trial

from optimize.ir.errors import RecipeError
from optimize.ir.exporting import Target
from optimize.ir.program import Program
from optimize.passes.catalog import PASSES
from optimize.passes.choices import Choice, OneOf, RealNumber
from optimize.passes.pass_base import Pass
from optimize.recipes.recipe import Recipe

DIGITS = 3
"""Significant digits of a searched number: more say nothing, and make a recipe hard to read."""


@dataclass(frozen=True)
class SearchSpace:
    """The passes that can be searched for a program, in the order in which they run.

    Attributes:
        passes: pass → option → its choice.
        left_out: pass → why it is not searched.
    """

    passes: Mapping[type[Pass], Mapping[str, Choice]]
    left_out: Mapping[str, str]

    def suggest(self, trial: Trial) -> list[dict[str, Any]]:
        """The `passes` of a recipe, chosen by a trial: each pass is on or off, one at least on."""
        entries: list[dict[str, Any]] = []
        for index, (item, choices) in enumerate(self.passes.items()):
            alone = index == len(self.passes) - 1 and not entries
            if not alone and not trial.suggest_categorical(item.name, [True, False]):
                continue
            options = {
                name: _suggested(trial, f"{item.name}.{name}", choice)
                for name, choice in choices.items()
            }
            entries.append({item.name: options})
        return entries

    def check(self, entries: list[dict[str, Any]]) -> None:
        """Refuses suggested options that do not go together.

        Raises:
            RecipeError: what the pass says of them.
        """
        for entry in entries:
            ((name, options),) = entry.items()
            item = next(known for known in self.passes if known.name == name)
            try:
                item(**options)
            except ValueError as error:
                raise RecipeError(f"{name}: {error}") from error

    def parameters(self, recipe: Recipe) -> dict[str, Any] | None:
        """The parameters with which a trial suggests this recipe; None where it cannot."""
        given = {type(entry.item): entry.item for entry in recipe.passes}
        if not set(given) <= set(self.passes):
            return None
        found: dict[str, Any] = {}
        for item, choices in self.passes.items():
            found[item.name] = item in given
            if item not in given:
                continue
            options = dataclasses.asdict(given[item])  # type: ignore[call-overload]
            searched = {name: options[name] for name in choices}
            if item(**searched) != given[item]:
                return None
            for name, value in searched.items():
                if not _fits(value, choices[name]):
                    return None
                found[f"{item.name}.{name}"] = value
        return found


def search_space(program: Program, target: Target) -> SearchSpace:
    """The search space of a captured program: every pass of the catalogue that does not decline."""
    passes: dict[type[Pass], Mapping[str, Choice]] = {}
    left_out = {}
    for item in PASSES:
        reason = item().declines(program)
        choices = {} if reason is not None else item.choices(program, target)
        if choices:
            passes[item] = choices
        else:
            left_out[item.name] = reason or f"has no options to search for target {target}"
    return SearchSpace(passes, left_out)


def _suggested(trial: Trial, name: str, choice: Choice) -> Any:
    if isinstance(choice, OneOf):
        return trial.suggest_categorical(name, choice.values)
    if isinstance(choice, RealNumber):
        value = trial.suggest_float(name, choice.low, choice.high, log=choice.log)
        return float(f"{value:.{DIGITS}g}")
    return trial.suggest_int(name, choice.low, choice.high, log=choice.log)


def _fits(value: Any, choice: Choice) -> bool:
    if isinstance(choice, OneOf):
        return value in choice.values
    return isinstance(value, (int, float)) and choice.low <= value <= choice.high

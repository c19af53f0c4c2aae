"""The search itself: one trial after the other, the cheap questions first."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from optuna.trial import Trial

from optimize.ir.program import Program
from optimize.passes.pipeline import Progress
from optimize.recipes.budget import excess
from optimize.recipes.recipe import Budget, Recipe
from optimize.recipes.tuning.front import cost, feasible, worth
from optimize.recipes.tuning.judging import Judge
from optimize.recipes.tuning.space import SearchSpace
from optimize.recipes.tuning.study import NAME, PARAMETERS, PREDICTED, RECIPE, TuningStudy
from optimize.report.tuning import Attempt
from optimize.runtime.errors import OptimizeError

Asked = Callable[[Sequence[Any]], Recipe]
"""The `passes` of a recipe → the recipe, with budget, target and calibration."""


HOPELESS = 2.0
"""Times as slow as the fastest known recipe within the budget: measuring cannot turn that over."""


class _Dropped(Exception):
    """A reason not to go on with a trial."""


class Search:
    """What a trial needs.

    Args:
        judge: holds recipes against the unoptimised program.
        space: what is searched.
        study: where trials are kept.
        metric: the quality that is traded against speed.
        budget: of every recipe.
        asked: makes a recipe of its passes.
    """

    def __init__(
        self,
        judge: Judge,
        space: SearchSpace,
        study: TuningStudy,
        metric: str,
        budget: Budget,
        asked: Asked,
    ) -> None:
        self.judge = judge
        self.space = space
        self.study = study
        self.metric = metric
        self.budget = budget
        self.asked = asked

    def run(self, deadline: float, progress: Progress) -> str:
        """Trials until there are enough, or until a time; returns why it ended.

        Args:
            deadline: of `time.monotonic`; a trial that has begun is ended.
            progress: told before each trial.
        """
        while time.monotonic() < deadline:
            trial = None
            try:
                trial = self.study.ask(self._fastest())
                if trial is None:
                    return ""
                progress(f"trial {trial.number + 1}", trial.number, self.study.total)
                self._try(trial)
            except KeyboardInterrupt:
                if trial is not None:
                    self.study.lose(trial.number)
                return "the search was interrupted"
        return "the time was up before all trials were done"

    def _fastest(self) -> int | None:
        """The fastest attempt within the budget that the space holds."""
        within = feasible(self.study.attempts(), self.budget)
        return min(within, key=cost).number if within else None

    def _try(self, trial: Trial) -> None:
        try:
            self._judge(trial)
        except _Dropped as dropped:
            self.study.drop(trial, str(dropped))
        except (OptimizeError, ValueError, ArithmeticError) as error:
            self.study.drop(trial, str(error))

    def _judge(self, trial: Trial) -> None:
        """Judges the recipe of a trial, or says why not."""
        suggested = self.space.suggest(trial) if _is_searched(trial) else []
        given = trial.user_attrs.get(RECIPE)
        if given is None:
            trial.set_user_attr(RECIPE, suggested)
            self.space.check(suggested)
        earlier = [item for item in self.study.attempts() if item.state == "judged"]
        recipe = self.asked(suggested if given is None else given)
        after = self.judge.rewritten(recipe)
        locked = recipe.locked(after.history)
        passes = locked.to_dict()["passes"]
        trial.set_user_attr(RECIPE, passes)
        for item in earlier:
            if list(item.passes) == _as_json(passes):
                raise _Dropped(f"the same as {item.label}")
        seconds = self.judge.predicted(after)
        if seconds is not None:
            self._check_seconds(trial, seconds, earlier)
        runs = self.judge.run(after)
        if seconds is None:
            seconds = self.judge.predicted_after(after, runs)
            self._check_seconds(trial, seconds, earlier)
        quality = self.judge.quality(runs)
        if quality[self.metric] is None:
            raise _Dropped(f"found no value of {self.metric}")
        for name, by in excess(self.budget, quality).items():
            trial.set_constraint(name, min(by, 1e9))
        self.study.tell(trial, seconds, self.metric, quality)

    def _check_seconds(self, trial: Trial, seconds: float, earlier: Sequence[Attempt]) -> None:
        """Drops what cannot become the recipe, whatever its quality."""
        trial.set_user_attr(PREDICTED, seconds)
        # Known recipes are judged all the same: a reader wants to see where they stand.
        if NAME in trial.user_attrs:
            return
        if seconds >= self.judge.seconds:
            raise _Dropped(
                f"predicted {seconds:.4g} s, the unoptimised program {self.judge.seconds:.4g} s"
            )
        within = [cost(item) for item in feasible(earlier, self.budget)]
        if within and seconds > HOPELESS * min(within):
            raise _Dropped(
                f"predicted {seconds:.4g} s, more than {HOPELESS:g} times the {min(within):.4g} s "
                "of one that holds the budget"
            )
        perfect = self.judge.best_quality(self.metric)
        for item in earlier:
            if worth(item, self.metric) >= perfect and cost(item) <= seconds:
                raise _Dropped(
                    f"predicted {seconds:.4g} s, {item.label} {cost(item):.4g} s with equal results"
                )


def known_recipe(recipe: Recipe, program: Program) -> Recipe | str:
    """A recipe without its optional passes that decline; or why it does not apply."""
    kept = []
    for entry in recipe.passes:
        reason = entry.item.declines(program)
        if reason is not None and not entry.optional:
            return f"{entry.item.name}: {reason}"
        if reason is None:
            kept.append(entry)
    if not kept:
        return "none of its passes applies"
    if recipe.parallel.sequence > 1:
        return f"it is for {recipe.parallel.sequence} processes"
    return Recipe(tuple(kept), name=recipe.name)


def _is_searched(trial: Trial) -> bool:
    """Whether the trial's recipe is of the search space: a known one may not be."""
    return NAME not in trial.user_attrs or bool(trial.user_attrs[PARAMETERS])


def _as_json(data: Any) -> Any:
    """Tuples as lists, as storage gives them back."""
    if isinstance(data, dict):
        return {key: _as_json(inner) for key, inner in data.items()}
    return [_as_json(inner) for inner in data] if isinstance(data, (list, tuple)) else data

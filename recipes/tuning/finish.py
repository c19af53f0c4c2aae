"""From judged attempts to a recipe: measured on the target, chosen, and verified."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optimize.measure.quality import Interval
from optimize.measure.timing import compare
from optimize.passes.calibration import Request
from optimize.passes.pipeline import Progress, results_error, run_passes
from optimize.recipes.budget import check_budget, excess, quality_text
from optimize.recipes.recipe import Budget, Recipe
from optimize.recipes.tuning.front import feasible, to_measure, worth
from optimize.recipes.tuning.judging import Judge, Quality
from optimize.recipes.tuning.measuring import UNOPTIMISED, Frechet, opened, timed
from optimize.recipes.tuning.search import Asked
from optimize.report.tuning import Attempt, Measurement, Tuning
from optimize.runtime.errors import OptimizeError
from optimize.runtime.session import Session

MOST_CHECKED, MOST_MEASURED, MOST_KNOWN = 12, 6, 3
"""Attempts whose quality is checked on fresh requests, attempts that are measured, and recipes
known before that are measured besides."""


@dataclass(frozen=True)
class Tuned:
    """What `tune` returns.

    Attributes:
        recipe: the fastest within the budget; None where there is none.
        tuning: all that was found.
        why_none: why there is no recipe.
    """

    recipe: Recipe | None
    tuning: Tuning
    why_none: str = ""


class Finish:
    """Chooses among the attempts of a search.

    Args:
        judge: holds recipes against the unoptimised program.
        asked: makes a recipe of its passes.
        budget: of the recipe.
        progress: told what is running.
    """

    def __init__(self, judge: Judge, asked: Asked, budget: Budget, progress: Progress) -> None:
        self.judge = judge
        self.asked = asked
        self.budget = budget
        self.progress = progress

    def run(
        self,
        tuning: Tuning,
        *,
        threads: int,
        seconds: float,
        fresh: Sequence[Request],
        frechet: Frechet | None,
        deadline: float,
    ) -> Tuned:
        """The search's result with what was measured, and the recipe.

        Args:
            tuning: what the search found.
            threads: of one operator on the target.
            seconds: to spend on timing.
            fresh: requests that the search did not see. A recipe that was only lucky is found
                out on them: those that hold the budget there, too, come first.
            frechet: judges the samples of a session.
            deadline: of `time.monotonic`; no samples are judged after it.
        """
        within = feasible(tuning.attempts, self.budget)
        if not within:
            return Tuned(None, tuning, self._unreachable(tuning))
        known = [item for item in tuning.judged if item.name][:MOST_KNOWN]
        checked = [*to_measure(within, tuning.metric, MOST_CHECKED), *known]
        fresh_quality = self._fresh({item.label: item for item in checked}, fresh)
        lasting = [
            item for item in checked if item in within and self._holds(fresh_quality[item.label])
        ]
        picked = to_measure(lasting or within, tuning.metric, MOST_MEASURED)
        chosen = {item.label: item for item in [*picked, *known]}
        programs = {UNOPTIMISED: self.judge.program}
        for name, item in chosen.items():
            programs[name] = self.judge.rewritten(self.asked(item.passes))
        with opened(programs, tuning.target, threads, self.progress) as sessions:
            raw = timed(sessions, self.judge.calibration[0], seconds, self.progress)
            medians = {name: statistics.median(found) for name, found in raw.items()}
            candidates = [item.label for item in within if item.label in chosen]
            faster = [name for name in candidates if medians[name] < medians[UNOPTIMISED]]
            holds = {name: self._holds(fresh_quality[name]) for name in faster}
            ordered = sorted(faster, key=lambda name: (not holds[name], medians[name]))
            winner, recipe, notes = self._verified({n: chosen[n].passes for n in ordered})
            if winner is not None and not holds[winner]:
                notes.append(
                    "no recipe that was measured holds the budget on fresh requests, too; more "
                    "--samples make a search less lucky"
                )
            shown = [*([winner] if winner else []), *(i.label for i in known if i in within)]
            distances = self._judged(sessions, shown, frechet, deadline)
        measured = [
            Measurement(
                number=chosen[name].number if name in chosen else None,
                name=name,
                seconds=medians[name],
                speedup=compare(raw[name], raw[UNOPTIMISED]).speedup,
                fresh_quality=fresh_quality.get(name, {}),
                frechet=distances.get(name),
                raw_seconds=tuple(raw[name]),
            )
            for name in raw
        ]
        tuning = replace(
            tuning, measured=tuple(measured), notes=(*tuning.notes, *notes, *_doubts(raw))
        )
        if recipe is None or winner is None:
            return Tuned(None, tuning, self._none(len(faster), medians, candidates))
        ratios = {
            item.label: compare(raw[winner], raw[item.label]).speedup
            for item in known
            if item.label != winner
        }
        number = chosen[winner].number
        return Tuned(recipe, replace(tuning, chosen=number, recipe=recipe.to_yaml(), ratios=ratios))

    def _judged(
        self,
        sessions: Mapping[str, Session],
        names: Sequence[str],
        frechet: Frechet | None,
        deadline: float,
    ) -> dict[str, Interval]:
        """Name → Fréchet distance of its samples, as long as there is time."""
        distances: dict[str, Interval] = {}
        for name in dict.fromkeys([*names, UNOPTIMISED]):
            if frechet is not None and time.monotonic() < deadline:
                self.progress(f"judge samples of {name}", len(distances), len(names) + 1)
                distances[name] = frechet(sessions[name])
        return distances

    def _verified(
        self, ordered: Mapping[str, Sequence[Any]]
    ) -> tuple[str | None, Recipe | None, list[str]]:
        """The first of some recipes that passes every check, and why those before it did not."""
        notes = []
        for index, (name, passes) in enumerate(ordered.items()):
            self.progress(f"verify {name}", index, len(ordered))
            recipe = self._simplified(self.asked(passes))
            try:
                after = run_passes(
                    self.judge.program, recipe.passes, calibration=self.judge.calibration
                )
                check_budget(name, self.budget, after.history)
            except OptimizeError as error:
                notes.append(f"{name} was not taken: {error}")
                continue
            return name, replace(recipe.locked(after.history), name="tuned"), notes
        return None, None, notes

    def _simplified(self, recipe: Recipe) -> Recipe:
        """The recipe without passes that change neither result nor predicted seconds."""
        program = self.judge.rewritten(recipe)
        runs = self.judge.run(program)
        for entry in recipe.passes if len(recipe.passes) > 1 else ():
            less = replace(recipe, passes=tuple(e for e in recipe.passes if e is not entry))
            try:
                other = self.judge.rewritten(less)
            except OptimizeError:
                continue
            again = self.judge.run(other)
            seconds = self.judge.predicted_after(other, again)
            same_seconds = seconds == self.judge.predicted_after(program, runs)
            if same_seconds and results_error(again.results, runs.results) == 0:
                return self._simplified(less)
        return recipe

    def _fresh(
        self, attempts: Mapping[str, Attempt], fresh: Sequence[Request]
    ) -> dict[str, Quality]:
        """Name → quality on requests that the search did not see."""
        self.progress("fresh requests", 0, len(attempts))
        judge = Judge(self.judge.program, fresh, self.judge.machine)
        found = {}
        for index, (name, item) in enumerate(attempts.items()):
            self.progress(f"fresh requests for {name}", index, len(attempts))
            found[name] = judge.quality(judge.run(judge.rewritten(self.asked(item.passes))))
        return found

    def _holds(self, quality: Mapping[str, float | None]) -> bool:
        return all(by <= 0 for by in excess(self.budget, quality).values())

    def _unreachable(self, tuning: Tuning) -> str:
        """Says what the best attempt reached of a budget that none holds."""
        if not tuning.judged:
            return f"none of {len(tuning.attempts)} trials could be judged"
        best = max(tuning.judged, key=lambda item: worth(item, tuning.metric))
        reached = ", ".join(quality_text(name, best.quality.get(name)) for name in tuning.limits)
        return (
            f"none of {len(tuning.attempts)} trials holds it; {best.label} comes nearest: {reached}"
        )

    def _none(self, faster: int, medians: Mapping[str, float], candidates: Sequence[str]) -> str:
        """Says why no candidate was taken."""
        if faster:
            return "no recipe within it passed its checks"
        best = min(candidates, key=medians.__getitem__)
        return (
            f"no recipe within it is faster: {best} takes {medians[best]:.4g} s, the unoptimised "
            f"program {medians[UNOPTIMISED]:.4g} s"
        )


def _doubts(raw: Mapping[str, Sequence[float]]) -> list[str]:
    """What a reader should know of the timings."""
    found = raw[UNOPTIMISED]
    spread = (max(found) - min(found)) / statistics.median(found)
    if spread < 0.5:
        return []
    return [f"the machine was busy: times of the unoptimised program differ by {spread:.0%}"]

"""The study of a search: its trials, shared by processes and kept for later ones.

What a trial found stands in its user attributes, so that a resumed study needs nothing else.
"""

import os
import socket
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from optimize.ir.errors import RecipeError
from optimize.recipes.budget import AT_MOST
from optimize.recipes.tuning.neighbour import neighbour
from optimize.recipes.tuning.storage import open_storage
from optimize.report.tuning import Attempt

STUDY, BOUND_TO, WORKER = "optimize tune", "bound_to", "worker"
RECIPE, NAME, REASON = "passes", "name", "reason"
PARAMETERS = "parameters"
PREDICTED, QUALITY = "predicted_seconds", "quality"
HIGHEST_PSNR = 150.0
"""dB, for the search only, which needs finite numbers: results that equal the reference."""

STARTUP = 10
"""Trials, known recipes among them, before what they found guides the search."""

LONGEST_ELSEWHERE = timedelta(hours=1)
"""After this a running trial of another machine counts as lost."""

LOST = "lost: its process ended, or was interrupted"
_STATES = {TrialState.COMPLETE: "judged", TrialState.PRUNED: "pruned"}


class TuningStudy:
    """Trials with two objectives: predicted seconds, and the first metric of the budget.

    Args:
        path: of the journal; None keeps the trials in memory.
        bound_to: what the study is about, JSON-able; another study in the file is an error.
        metric: of `Budget`, the second objective.
        total: trials of the study, over all processes and runs; those that were lost do not count.
        seed: of the search; a trial depends on it and on the trials before.
    Raises:
        RecipeError: the file is of another search.
    """

    def __init__(
        self, path: Path | None, bound_to: Mapping[str, Any], metric: str, total: int, seed: int
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.total = total
        self.seed = seed
        self.me = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        fewer, more = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study: Study = optuna.create_study(
                storage=open_storage(path),
                study_name=STUDY,
                directions=[fewer, fewer if metric in AT_MOST else more],
                sampler=_SeededByTrial(seed),
                load_if_exists=True,
            )
        self._bind(path, bound_to)
        self.collect_lost()

    def shared(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A fact that the first process finds out for all, JSON-able."""
        if name not in self.study.user_attrs:
            self.study.set_user_attr(name, make())
        found: dict[str, Any] = self.study.user_attrs[name]
        return found

    def enqueue(self, parameters: Mapping[str, Any], passes: Sequence[Any], name: str) -> None:
        """Puts a known recipe in front of what the search makes up, once in a study."""
        if any(trial.user_attrs.get(NAME) == name for trial in self._trials()):
            return
        facts = {NAME: name, RECIPE: list(passes), PARAMETERS: dict(parameters)}
        self.study.enqueue_trial(dict(parameters), facts)

    def ask(self, near: int | None = None) -> Trial | None:
        """The next trial; None when the study has all of its trials.

        Args:
            near: number of a trial; every second one is a step away from it.
        """
        self.collect_lost()
        counted = self._trials()
        waiting = [item for item in counted if item.state == TrialState.WAITING]
        if len(counted) - len(waiting) >= self.total:
            return None
        if near is not None and not waiting and len(counted) >= STARTUP and len(counted) % 2:
            drawn = np.random.default_rng((self.seed, len(counted)))
            other = next(item for item in counted if item.number == near)
            if other.params:
                self.study.enqueue_trial(neighbour(other, drawn))
        trial = self.study.ask()
        trial.set_user_attr(WORKER, self.me)
        # Another process may have begun the last one in the same moment.
        if sum(item.number < trial.number for item in self._trials()) >= self.total:
            self.lose(trial.number)
            return None
        return trial

    def tell(self, trial: Trial, seconds: float, metric: str, quality: Mapping[str, Any]) -> None:
        """Ends a trial whose quality is known."""
        trial.set_user_attr(QUALITY, dict(quality))
        value = quality[metric]
        self.study.tell(trial, [seconds, min(value, HIGHEST_PSNR) if metric == "psnr" else value])

    def drop(self, trial: Trial, reason: str) -> None:
        """Ends a trial that is not worth judging, or cannot be judged."""
        trial.set_user_attr(REASON, reason)
        self.study.tell(trial, state=TrialState.PRUNED)

    def lose(self, number: int) -> None:
        """Ends a trial that came to nothing and does not count; a known recipe is tried again."""
        trial = self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        if trial.state == TrialState.FAIL and NAME in trial.user_attrs:
            facts = trial.user_attrs
            self.enqueue(facts[PARAMETERS], facts[RECIPE], facts[NAME])

    def collect_lost(self) -> None:
        """Ends the trials whose process ended."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self._is_lost(trial):
                self.lose(trial.number)

    def attempts(self) -> tuple[Attempt, ...]:
        """All trials as a report has them; those that did not begin are left out."""
        done = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
        return tuple(_attempt(item) for item in self.study.get_trials(states=done))

    def _trials(self) -> list[FrozenTrial]:
        """Those that count."""
        found = self.study.get_trials(deepcopy=False)
        return [item for item in found if item.state != TrialState.FAIL]

    def _is_lost(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get(WORKER)
        begun = trial.datetime_start or datetime.now()
        if worker is None:
            return datetime.now() - begun > timedelta(seconds=5)
        if worker["token"] == self.me["token"]:
            return False
        if worker["host"] != self.me["host"]:
            return datetime.now() - begun > LONGEST_ELSEWHERE
        return worker["pid"] == self.me["pid"] or not _is_alive(worker["pid"])

    def _bind(self, path: Path | None, bound_to: Mapping[str, Any]) -> None:
        before = self.study.user_attrs.get(BOUND_TO)
        if before is None:
            self.study.set_user_attr(BOUND_TO, dict(bound_to))
            return
        other = [name for name in bound_to if before.get(name) != bound_to[name]]
        if other:
            name = other[0]
            raise RecipeError(
                f"--storage {path}: found a study of {name} {before.get(name)!r}, expected "
                f"{name} {bound_to[name]!r}; name another file"
            )


class _SeededByTrial(BaseSampler):
    """Optuna's TPE, seeded anew for each trial, so that processes never draw the same."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.inner = self._made(0)

    def _made(self, number: int) -> TPESampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # `group`: options of a pass exist only where the pass is on.
            seed = (self.seed * 1_000_003 + number) % 2**32
            return TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.inner = self._made(trial.number)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self.inner.sample_independent(study, trial, param_name, param_distribution)


def _attempt(trial: FrozenTrial) -> Attempt:
    facts = trial.user_attrs
    duration = trial.duration
    return Attempt(
        number=trial.number,
        state=_STATES.get(trial.state, "failed"),  # type: ignore[arg-type]
        passes=tuple(facts.get(RECIPE, ())),
        name=facts.get(NAME, ""),
        reason=LOST if trial.state == TrialState.FAIL else facts.get(REASON, ""),
        predicted_seconds=facts.get(PREDICTED),
        quality=facts.get(QUALITY, {}),
        seconds=0.0 if duration is None else duration.total_seconds(),
    )


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""A step from one trial to another beside it: the search near the best that is known."""

from typing import Any

from numpy.random import Generator
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial

CHANGED = 0.25
"""Share of the parameters that differ; one at least does."""

FARTHEST, SPREAD = 2, 0.2
"""Steps of a whole number, and standard deviation of a real one as a share of its range."""


def neighbour(trial: FrozenTrial, drawn: Generator) -> dict[str, Any]:
    """The parameters of a trial with some of them changed a little."""
    names = sorted(trial.params)
    changed = [name for name in names if drawn.random() < CHANGED]
    changed = changed or [names[drawn.integers(len(names))]]
    other = {name: _other(trial.params[name], trial.distributions[name], drawn) for name in changed}
    return {**trial.params, **other}


def _other(value: Any, distribution: BaseDistribution, drawn: Generator) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        others = [item for item in distribution.choices if item != value] or [value]
        return others[drawn.integers(len(others))]
    low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
    if isinstance(distribution, IntDistribution):
        reach = range(value - FARTHEST, value + FARTHEST + 1)
        near = [item for item in reach if low <= item <= high and item != value] or [value]
        return near[drawn.integers(len(near))]
    return min(high, max(low, value + SPREAD * (high - low) * drawn.standard_normal()))

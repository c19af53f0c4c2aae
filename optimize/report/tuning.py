"""What a search for a recipe found: every attempt, what was measured, and what was chosen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from optimize.ir.exporting import Target
from optimize.ir.report import plain
from optimize.measure.quality import Interval

FORMAT_VERSION = "1.0"

State = Literal["judged", "pruned", "failed"]
"""Its quality is known; dropped before that, with a reason; ended without a result."""


@dataclass(frozen=True)
class Attempt:
    """One recipe that was tried.

    Attributes:
        number: of the trial in its study.
        state: how far it came.
        passes: as in a recipe; of a judged one with the options that it found by trying.
        name: of a recipe that was known before; "" for one that the search made up.
        reason: why it is not judged.
        predicted_seconds: of one request, by the cost model; None when not even that is known.
        quality: metric → value, against the unoptimised program on the calibration requests.
        seconds: that the attempt took.
    """

    number: int
    state: State
    passes: tuple[Mapping[str, Any], ...] = ()
    name: str = ""
    reason: str = ""
    predicted_seconds: float | None = None
    quality: Mapping[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def label(self) -> str:
        """Its name, or its number."""
        return self.name or f"trial {self.number}"


@dataclass(frozen=True)
class Measurement:
    """One attempt as it ran on the target, in turns with all others.

    Attributes:
        number: of the attempt; None is the unoptimised program.
        name: to show.
        seconds: of one request, median.
        speedup: over the unoptimised program, with its interval.
        fresh_quality: metric → value on requests that the search did not see.
        frechet: distance of its samples to real ones, where the model has a judge.
        raw_seconds: every round.
    """

    number: int | None
    name: str
    seconds: float
    speedup: Interval
    fresh_quality: Mapping[str, float | None] = field(default_factory=dict)
    frechet: Interval | None = None
    raw_seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Tuning:
    """Everything there is to say about a search.

    Attributes:
        model: as it was named.
        target: what was measured.
        metric: the quality that the search traded against speed.
        limits: metric → limit of the budget.
        predicted_seconds: of the unoptimised program.
        attempts: in order.
        front: numbers of the attempts that no other beats in both predicted seconds and quality.
        measured: the unoptimised program first.
        chosen: number of the attempt that became the recipe; None when none could.
        recipe: the chosen one as YAML; "" when there is none.
        ratios: known recipe → how much faster the chosen one is, with its interval.
        left_out: pass → why it was not searched.
        notes: what else a reader should know.
        environment: what was measured on, when, and how long it took.
    """

    model: str
    target: Target
    metric: str
    limits: Mapping[str, float]
    predicted_seconds: float
    attempts: tuple[Attempt, ...]
    front: tuple[int, ...] = ()
    measured: tuple[Measurement, ...] = ()
    chosen: int | None = None
    recipe: str = ""
    ratios: Mapping[str, Interval] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def judged(self) -> list[Attempt]:
        """The attempts whose quality is known."""
        return [item for item in self.attempts if item.state == "judged"]

    def attempt(self, number: int) -> Attempt:
        """The attempt of a number."""
        return next(item for item in self.attempts if item.number == number)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able data; what is not finite becomes null."""
        data: dict[str, Any] = plain(self)
        return {"format": FORMAT_VERSION, **data}

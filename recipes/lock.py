"""What a recipe is locked to: the model it was made for, and what was measured there."""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optimize.ir.digest import Source
from optimize.ir.errors import RecipeError

OTHER_WEIGHTS = "the lock is of other weights; "
SHOWN = 12
"""Digits of a digest that a message shows."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Lock:
    """What binds a recipe to where it was made; only `graphs` and `weights` are compared.

    Args:
        graphs: SHA-256 of the structure of the captured graphs, in hexadecimal.
        weights: SHA-256 of the captured weights.
        versions: library → version.
        machine: processor, cores and system; None where nothing was measured.
        ratio: time of a request over that of a fixed piece of work, above 0.
        speedup: "value" and "interval" against the unrewritten program.
        quality: metric → "value" and "interval".
    """

    graphs: str
    weights: str
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str | None = None
    ratio: float | None = None
    speedup: Mapping[str, Any] | None = None
    quality: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("graphs", "weights"):
            value = getattr(self, name)
            if not _DIGEST.fullmatch(value):
                raise ValueError(
                    f"{name}: found {value[:80]!r}, expected 64 hexadecimal digits; take the lock "
                    "of a bundle as it is"
                )
        if self.ratio is not None and not 0 < self.ratio < math.inf:
            raise ValueError(f"ratio: found {self.ratio}, expected a finite number above 0")

    def to_dict(self) -> dict[str, Any]:
        """As plain data, without what is not there."""
        return {name: item for name, item in dataclasses.asdict(self).items() if item}


def note_on(lock: Lock, source: Source, recipe: str, verified: bool) -> str | None:
    """A note for the report of a program that a locked recipe is applied to; None where all fits.

    Args:
        lock: of the recipe.
        source: the captured program.
        recipe: name, for messages.
        verified: whether the quality is measured anew.
    Raises:
        RecipeError: the graphs are others.
    """
    if source.graphs != lock.graphs:
        raise RecipeError(
            f"recipe {recipe}: locked to another model: found graphs {source.graphs[:SHOWN]}…, "
            f"expected {lock.graphs[:SHOWN]}…; run the recipe it was made from, or remove `lock:`"
        )
    if source.weights == lock.weights:
        return None
    return OTHER_WEIGHTS + ("quality was measured anew" if verified else "quality was not measured")

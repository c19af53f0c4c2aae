"""What of a pass can be searched: the values that an option may take in a tuned recipe."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class WholeNumber:
    """A whole number in [low, high]; `log` searches its logarithm, with low >= 1."""

    low: int
    high: int
    log: bool = False


@dataclass(frozen=True)
class RealNumber:
    """A number in [low, high]; `log` searches its logarithm, with low > 0."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class OneOf:
    """One of some values without an order: text, numbers, booleans or None."""

    values: tuple[Any, ...]


Choice = WholeNumber | RealNumber | OneOf

"""The contract of a pass: one frozen dataclass whose fields are the options.

A pass is a function from a program to a program, with its preconditions and its checks beside it:

    choices(program, target)      which options are worth searching, and where
    declines(program)             why it does not apply, or None
    fit(program, requests)        the pass with options found out by trying; itself by default
    rewrite(program)              the new program; the old one is unchanged
    identity()                    the options at which it must change nothing
    oracles(before, after, …)     checks that hold at these options
    figures(before, after, …)     facts for the report that only running the programs shows

`passes.pipeline` runs them in this order and writes the record.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, get_args

from optimize.ir.exporting import Target
from optimize.ir.program import Program
from optimize.passes.choices import Choice

Numerics = Literal["exact", "rounding", "approximate"]
"""Bit for bit; equal up to rounding; or an approximation with a measured error."""


@dataclass(frozen=True)
class Rewritten:
    """What a rewrite returns: the new program, the places it changed, facts for the report."""

    program: Program
    sites: tuple[str, ...]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OracleResult:
    """One check: what was measured and the largest value that passes."""

    name: str
    measured: float
    bound: float

    @property
    def holds(self) -> bool:
        """False for NaN, too."""
        return self.measured <= self.bound


@dataclass(frozen=True)
class Fitted:
    """What fitting returns: the pass with the options it found, and facts for the report.

    The options found stand in the record and in the recipe's lock, so that no later run has to
    search again.
    """

    item: "Pass"
    details: Mapping[str, Any] = field(default_factory=dict)


class Declined(Exception):
    """Raised by `fit` and `rewrite` for a reason to decline that only shows while rewriting."""


class Pass(ABC):
    """Base of every pass; subclasses are final frozen dataclasses, one per module.

    Class attributes:
        numerics: what the pass promises about the result.
    """

    numerics: ClassVar[Numerics]
    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Pass not in cls.__bases__:
            raise TypeError(f"{cls.__name__}: a pass derives from Pass itself and is final")
        numerics = cls.__dict__.get("numerics")
        if numerics not in get_args(Numerics):
            raise TypeError(
                f"{cls.__name__}: found numerics {numerics!r}, "
                f"expected one of {', '.join(get_args(Numerics))}"
            )
        cls.name = cls.__module__.rpartition(".")[2]

    @classmethod
    def choices(cls, program: Program, target: Target) -> Mapping[str, Choice]:
        """Option → the values worth searching for a captured program; empty leaves the pass out.

        Values may not go together: what the pass then says is the reason to drop the attempt.
        """
        return {}

    @abstractmethod
    def declines(self, program: Program) -> str | None:
        """Why the pass does not apply to this program, or None."""

    def fit(self, program: Program, requests: Sequence[Mapping[str, Any]]) -> Fitted:
        """This pass with options that only trying on the calibration requests can find.

        Raises:
            Declined: a precondition that only shows while trying.
        """
        return Fitted(self)

    @abstractmethod
    def rewrite(self, program: Program) -> Rewritten:
        """The new program; may assume that `declines` returned None.

        Raises:
            Declined: a precondition that only shows while rewriting.
        """

    @abstractmethod
    def identity(self) -> Self:
        """This pass with options at which it must change nothing."""

    def oracles(
        self, before: Program, after: Program, request: Mapping[str, Any]
    ) -> list[OracleResult]:
        """Checks that hold at these options, run on a calibration request."""
        return []

    def figures(
        self, before: Program, after: Program, request: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Facts for the report that only running on a calibration request shows, JSON-able."""
        return {}

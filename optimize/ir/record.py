"""What one pass did: one entry of a program's history."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """What one pass did.

    Attributes:
        name: the pass's name.
        options: its options, JSON-able.
        sites: names of the places it rewrote.
        declined: why it did not apply, or None.
        flops_before: floating-point operations of one request before the pass.
        flops_after: the same after it.
        error: relative error of the result against the program before the first pass, on the
            calibration inputs; None when it was not verified.
        seconds: time the pass took, verification included.
        oracles: name of each check that ran → what it measured.
        details: what the report draws (active tokens by step, coefficient tables …).
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sites: tuple[str, ...] = ()
    declined: str | None = None
    flops_before: float = 0.0
    flops_after: float = 0.0
    error: float | None = None
    seconds: float = 0.0
    oracles: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

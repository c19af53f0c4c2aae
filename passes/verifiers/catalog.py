"""Every verifier by its recipe name. To add one: a subclass of `Verifier`, a line here."""

from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from optimize.passes.verifiers.block import Block
from optimize.passes.verifiers.greedy import Greedy
from optimize.passes.verifiers.judge import Judge
from optimize.passes.verifiers.kseq import Exact, KSeq
from optimize.passes.verifiers.recursive import Recursive
from optimize.passes.verifiers.verifier_base import Verifier

VERIFIERS: dict[str, Callable[..., Verifier]] = {
    kind.name: kind for kind in (Exact, Block, KSeq, Recursive, Greedy, Judge)
}
"""Recipe name → verifier, which takes its options by name."""


def verifier(name: str, **options: Any) -> Verifier:
    """The verifier of a name.

    Raises:
        ValueError: no verifier has the name, or it has no such option.
    """
    if name not in VERIFIERS:
        close = get_close_matches(name, VERIFIERS, 1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(
            f"unknown verifier {name!r}; known verifiers: {', '.join(VERIFIERS)}.{meant}"
        )
    known = [field.name for field in fields(VERIFIERS[name])]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            expected = ", ".join(known) or "none"
            raise ValueError(f"{name}: found option {option!r}, expected {expected}")
    return VERIFIERS[name](**options)

"""Where `Program.export` finds the exporters, which come after `ir` in the import order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from optimize.ir.errors import RecipeError

Exporter = Callable[..., Path]
"""(program, path, loop=…, unroll=…, overwrite=…, recipe=…, report=…) → the bundle's folder."""

EXPORTERS: dict[str, Exporter] = {}
"""Target → exporter; filled by the face of the package."""


LoopForm = Literal["step", "unrolled", "onnx_loop"]
"""How the steps of a loop become engine calls: one each, several at once, or an ONNX `Loop`."""


def check_form(form: str, unroll: int | None) -> None:
    """Refuses a form of the loop that there is not, before any work is done for it.

    Raises:
        RecipeError: says what there is.
    """
    if form not in get_args(LoopForm):
        raise RecipeError(f"loop: found {form!r}, expected one of {', '.join(get_args(LoopForm))}")
    if unroll is not None and form != "unrolled":
        raise RecipeError(f'unroll: found {unroll} with loop="{form}", expected loop="unrolled"')
    if unroll is not None and unroll < 1:
        raise RecipeError(f"unroll: found {unroll}, expected a number of steps of at least 1")


def export(program: Any, path: Any, target: str, **options: Any) -> Path:
    """Writes a bundle for a target.

    Raises:
        RecipeError: there is no exporter for the target.
    """
    if target not in EXPORTERS:
        raise RecipeError(f"unknown target {target!r}; known targets: {', '.join(EXPORTERS)}")
    return EXPORTERS[target](program, path, **options)

"""Where `Program.export` finds the exporters, which come after `ir` in the import order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimize.ir.errors import RecipeError

Exporter = Callable[..., Path]
"""(program, path, loop=…, unroll=…, overwrite=…, recipe=…, report=…) → the bundle's folder."""

EXPORTERS: dict[str, Exporter] = {}
"""Target → exporter; filled by the face of the package."""


def export(program: Any, path: Any, target: str, **options: Any) -> Path:
    """Writes a bundle for a target.

    Raises:
        RecipeError: there is no exporter for the target.
    """
    if target not in EXPORTERS:
        raise RecipeError(f"unknown target {target!r}; known targets: {', '.join(EXPORTERS)}")
    return EXPORTERS[target](program, path, **options)

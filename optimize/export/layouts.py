"""Folders that are written from a bundle for those who serve it: one name and one writer each."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from optimize.ir.errors import RecipeError

Writer = Callable[..., Path]
"""Called with the bundle, the folder to write, `overwrite`, and the options that were given."""


@dataclass(frozen=True)
class Layout:
    """A layout: the function that writes it, and the options it takes besides `overwrite`.

    `options` maps the option of the command line, without its dashes, to the writer's argument.
    """

    module: str
    function: str
    options: Mapping[str, str]
    required: tuple[str, ...] = ()

    def writer(self) -> Writer:
        """The function, imported when it is wanted."""
        found: Writer = getattr(import_module(self.module), self.function)
        return found


LAYOUTS: Mapping[str, Layout] = {
    "triton-server": Layout(
        "optimize.export.triton_server",
        "write_model_repository",
        {
            "name": "name",
            "device": "device",
            "instances": "instances",
            "concurrency": "concurrency",
            "threads": "threads",
            "stream": "stream",
        },
    ),
    "browser": Layout(
        "optimize.export.browser",
        "write_site",
        {"ort-web": "runtime"},
        required=("ort-web",),
    ),
}


def check_layout(name: str, options: Mapping[str, Any]) -> None:
    """Refuses an unknown layout, options it does not take, and lacking ones, before any work.

    Args:
        name: one of `LAYOUTS`, or "bundle", which is the bundle itself and takes no options.
        options: option → value, only those that were given.
    Raises:
        RecipeError: says which.
    """
    known = ("bundle", *LAYOUTS)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f". Did you mean {close[0]}?" if close else ""
        raise RecipeError(f"--layout {name}: unknown, known: {', '.join(known)}{hint}")
    layout = LAYOUTS.get(name)
    for option in options:
        takers = [other for other, item in LAYOUTS.items() if option in item.options]
        if layout is None or option not in layout.options:
            raise RecipeError(
                f"--{option}: found it with layout {name}, which does not take it; leave it away, "
                f"or pass --layout {' or '.join(takers)}"
            )
    for option in () if layout is None else layout.required:
        if option not in options:
            raise RecipeError(f"--layout {name}: found no --{option}, which it needs; pass it")


def write_layout(
    name: str, bundle: Path, out: Path, *, overwrite: bool, options: Mapping[str, Any]
) -> Path:
    """Writes a layout, which `check_layout` accepts, from a bundle; returns its folder."""
    layout = LAYOUTS[name]
    arguments = {layout.options[option]: value for option, value in options.items()}
    return layout.writer()(bundle, out, overwrite=overwrite, **arguments)

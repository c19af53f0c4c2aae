"""`optimize recipes` and `optimize passes`: what there is to use."""

import dataclasses
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from optimize.commands.console import Json, console, print_json


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe.")] = None,
    as_json: Json = False,
) -> None:
    """List the named recipes, or show one."""
    from optimize.recipes import recipe

    if name is not None:
        path = recipe.find(name)
        loaded = recipe.Recipe.load(path)
        if as_json:
            print_json(loaded.to_dict())
        else:
            console().print(Text(path.read_text("utf-8")), end="", soft_wrap=True)
        return
    rows: list[dict[str, Any]] = []
    for item in recipe.names():
        loaded = recipe.Recipe.load(item)
        lines = recipe.find(item).read_text("utf-8").splitlines()
        passes = [entry.item.name for entry in loaded.passes]
        rows.append({"name": item, "passes": passes, "description": lines[0].removeprefix("# ")})
    if as_json:
        print_json(rows)
        return
    table = Table("recipe", "passes", "what for", box=None, header_style="bold")
    for row in rows:
        table.add_row(row["name"], ", ".join(row["passes"]), str(row["description"]))
    console().print(table)


def passes(
    name: Annotated[str | None, typer.Argument(help="Describe this pass.")] = None,
    as_json: Json = False,
) -> None:
    """List the passes, or describe one."""
    from optimize.ir.errors import RecipeError
    from optimize.passes.catalog import passes_by_name
    from optimize.recipes.options import nearest

    known = passes_by_name()
    if name is not None and name not in known:
        raise RecipeError(f"unknown pass {name!r}; {nearest(name, known, 'passes')}")
    chosen = known if name is None else {name: known[name]}
    rows = [_described(item) for item in chosen.values()]
    if as_json:
        print_json(rows if name is None else rows[0])
    elif name is not None:
        text = f"{name}\n\n{rows[0]['description']}\n\n{rows[0]['options_text']}"
        console().print(Text(text), soft_wrap=True)
    else:
        table = Table("pass", "numerics", "what it does", box=None, header_style="bold")
        for row in rows:
            table.add_row(row["name"], row["numerics"], row["description"].splitlines()[0])
        console().print(table)


def _described(item: Any) -> dict[str, Any]:
    import inspect
    import sys

    from optimize.recipes.options import described

    hints = inspect.get_annotations(item, eval_str=True)
    options = {
        field.name: {
            "type": described(hints[field.name]),
            "default": None if field.default is dataclasses.MISSING else field.default,
        }
        for field in dataclasses.fields(item)
    }
    return {
        "name": item.name,
        "numerics": item.numerics,
        "description": inspect.cleandoc(sys.modules[item.__module__].__doc__ or ""),
        "options": options,
        "options_text": inspect.cleandoc(item.__doc__ or ""),
    }

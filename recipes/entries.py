"""The `passes` list of a recipe: which pass, with which options, and whether it may be left out."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from optimize.passes.catalog import order_problem
from optimize.passes.pass_base import Pass
from optimize.passes.pipeline import Entry
from optimize.recipes.options import build, nearest, plain
from optimize.recipes.strict_yaml import REFUSED, Node


def entry_data(entry: Entry) -> Any:
    """The entry as it stands in a recipe."""
    options = dataclasses.asdict(entry.item)  # type: ignore[call-overload]
    if entry.optional:
        options["optional"] = True
    return {entry.item.name: options} if options else entry.item.name


def read_entries(
    node: Node | None, where: str, known: Mapping[str, type[Pass]], problems: list[str]
) -> list[Entry]:
    """The entries of a recipe; what is wrong with them is appended to `problems`."""
    if node is None or node.value is None:
        problems.append(f"{where}: `passes` is missing, expected a list of passes")
        return []
    if not isinstance(node.value, list):
        if node.value is not REFUSED:
            problems.append(
                f"{node.where}: passes: found {type(plain(node)).__name__}, expected a list; "
                "begin each pass with `- `"
            )
        return []
    entries: list[Entry] = []
    before: list[str] = []
    for item in node.value:
        named = _named(item, problems)
        if named is None:
            continue
        name, place, options = named
        if name not in known:
            dotted = "a recipe never imports code; " if "." in name or ":" in name else ""
            problems.append(
                f"{place}: unknown pass {name!r}; {dotted}{nearest(name, known, 'passes')}"
            )
            continue
        before.append(name)
        wrong_order = order_problem(before, len(before) - 1)
        if wrong_order:
            problems.append(f"{place}: {wrong_order}")
        built = build(known[name], options, name, problems, also=("optional",))
        optional = _optional(options, name, problems)
        if built is not None:
            entries.append(Entry(built, optional))
    return entries


def _named(item: Node, problems: list[str]) -> tuple[str, str, Node] | None:
    """Name, place and options of an entry: `fuse_solver`, or `fuse_solver: {…}`."""
    if isinstance(item.value, str):
        return item.value, item.where, Node(None, item.where)
    if isinstance(item.value, dict) and len(item.value) == 1:
        ((name, options),) = item.value.items()
        return name, options.key_where or item.where, options
    if isinstance(item.value, dict) and item.value:
        first, *others = item.value
        problems.append(
            f"{item.where}: found {', '.join(map(repr, others))} beside {first!r} in one entry; "
            f"indent options below `{first}:`, and begin another pass with `- `"
        )
    elif item.value is not REFUSED:
        problems.append(
            f"{item.where}: found {plain(item)!r}, expected the name of a pass, or `name:` with "
            "its options below"
        )
    return None


def _optional(options: Node, name: str, problems: list[str]) -> bool:
    node = options.value.get("optional") if isinstance(options.value, dict) else None
    if node is None or node.value is REFUSED:
        return False
    if not isinstance(node.value, bool):
        problems.append(
            f"{node.where}: {name}.optional: found {plain(node)!r}, expected true or false"
        )
        return False
    return node.value

"""Checks a mapping of a recipe strictly against the fields of a dataclass; names every problem."""

import dataclasses
import difflib
import json
from collections.abc import Collection, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from optimize.recipes.strict_yaml import REFUSED, Node
from optimize.runtime.errors import OptimizeError

T = TypeVar("T")

_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
}


def nearest(name: str, known: Collection[str], kind: str) -> str:
    """The end of a message about an unknown name: the known ones, and the nearest."""
    text = f"known {kind}: {', '.join(sorted(known)) or 'none'}"
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"{text}. Did you mean {close[0]}?" if close else text


def build(
    cls: type[T], node: Node, title: str, problems: list[str], also: Collection[str] = ()
) -> T | None:
    """An instance of a dataclass from a mapping; None when something is wrong with it.

    Args:
        cls: a dataclass whose fields are the keys; its `__post_init__` checks ranges.
        node: the mapping, or null for all defaults.
        title: how messages call it, such as "cache_regions".
        problems: what is wrong is appended here.
        also: keys that the caller reads itself.
    """
    given: Any = {} if node.value is None else node.value
    if given is REFUSED:
        return None
    if not isinstance(given, dict):
        problems.append(f"{node.where}: {title}: found {plain(node)!r}, expected options by name")
        return None
    before = len(problems)
    hints = get_type_hints(cls, include_extras=True)
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, inner in given.items():
        if key in fields:
            ok, values[key] = _typed(hints[key], inner, f"{title}.{key}", problems)
        elif key not in also:
            problems.append(
                f"{inner.key_where or inner.where}: {title}: unknown option {key!r}; "
                + nearest(key, {*fields, *also}, "options")
            )
    for name, item in fields.items():
        required = item.default is item.default_factory is dataclasses.MISSING
        if required and name not in given:
            problems.append(
                f"{node.where}: {title}: {name} is missing, expected {described(hints[name])}"
            )
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except (ValueError, TypeError, OptimizeError) as error:
        problems.append(f"{node.where}: {_begun(str(error), title)}")
        return None


def plain(node: Node) -> Any:
    """The value of a node without places."""
    if isinstance(node.value, dict):
        return {key: plain(inner) for key, inner in node.value.items()}
    if isinstance(node.value, list):
        return [plain(inner) for inner in node.value]
    return node.value


def described(hint: Any) -> str:
    """A type as a reader of a recipe knows it: "a number or null"."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *limits = get_args(hint)
        shown = [str(limit) for limit in limits if not isinstance(limit, str)]
        return f"{described(inner)} ({', '.join(shown)})" if shown else described(inner)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(hint))
    if origin in (Union, UnionType):
        return " or ".join(described(choice) for choice in get_args(hint))
    if origin in (list, tuple):
        inner = [choice for choice in get_args(hint) if choice is not Ellipsis]
        return "a list of " + ", ".join(dict.fromkeys(described(choice) for choice in inner))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _typed(hint: Any, node: Node, title: str, problems: list[str]) -> tuple[bool, Any]:
    """The value of an option as its type wants it (lists become tuples); never a coercion."""
    if _refused(node):
        return False, None
    value = plain(node)
    try:
        # JSON, not Python values: strict mode then takes a list for a tuple, and nothing else.
        return True, TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        found = node.text if isinstance(value, (int, float)) and node.text else json.dumps(value)
        reason = "" if _is_type_error(error) else f" ({error.errors()[0]['msg'].lower()})"
        problems.append(
            f"{node.where}: {title}: found {found[:80]}, expected {described(hint)}{reason}"
        )
        return False, None


def _refused(node: Node) -> bool:
    if isinstance(node.value, (dict, list)):
        inner = node.value.values() if isinstance(node.value, dict) else node.value
        return any(_refused(item) for item in inner)
    return node.value is REFUSED


def _is_type_error(error: ValidationError) -> bool:
    return any(
        item["type"].endswith(("_type", "_from_float", "literal_error")) for item in error.errors()
    )


def _begun(message: str, title: str) -> str:
    return message if message.startswith(title) else f"{title}: {message}"

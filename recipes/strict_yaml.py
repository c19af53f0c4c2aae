"""Reads YAML without its surprises, and keeps the place of every value for error messages.

    passes:                    Node({"passes": Node([Node("fuse_solver", "fast.yaml:2:5")],
      - fuse_solver                                 "fast.yaml:2:3")}, "fast.yaml:1:1")

Refused: duplicate keys, tags, anchors and aliases, `${…}` interpolation, several documents, nesting
deeper than 32, and plain words that YAML versions read differently (`on`, `010`, `12:30`, `0x1f`,
`1_000`). `1e-3` is a number here. The same tree is made of Python mappings and lists, so that a
recipe given as a dict meets the same checks.
"""

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 10_000

REFUSED = object()
"""The value of a node whose problem is already reported."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]{1,3})?")
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}
_TWO_READINGS = re.compile(
    r"(?i:yes|no|on|off|y|n|[-+]?\.(inf|nan))"  # words of YAML 1.1
    r"|[-+]?0[0-9_]+|[-+]?0[box][0-9a-fA-F_]+"  # octal, binary, hexadecimal
    r"|[-+]?[0-9]+(_[0-9]+)+"
    r"|[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?"  # base sixty
    r"|[-+]?[0-9]{19,}"
)


@dataclass(frozen=True)
class Node:
    """A value and its place: "file:line:column", or a path such as "recipe.passes[0]".

    `value` is None, a bool, int, float or str, a list of nodes, a dict of nodes by key, or REFUSED.
    `text` is the value as it was written.
    """

    value: Any
    where: str
    text: str = ""
    key_where: str = ""


@dataclass
class _Open:
    """A sequence or mapping whose end has not been read yet."""

    where: str
    key_where: str
    items: list[Node] | dict[str, Node]
    key: str | None = None
    key_place: str = ""
    seen: dict[str, str] = field(default_factory=dict)


def decode(content: bytes, source: str, problems: list[str]) -> str:
    """The text of a file; a byte order mark and CRLF are accepted."""
    if len(content) > MAX_BYTES:
        problems.append(f"{source}: found more than {MAX_BYTES} bytes, expected at most 1 MiB")
        return ""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append(f"{source}: found bytes that are not UTF-8 at offset {error.start}")
        return ""
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        problems.append(f"{source}:{line}: found a NUL byte, expected text")
        return ""
    return text


def parse(text: str, source: str, problems: list[str]) -> Node | None:
    """The tree of a YAML document; what is wrong with it is appended to `problems`."""
    reader = _Reader(source, problems)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if not reader.read(event):
                return None
    except yaml.YAMLError as error:
        problems.append(_syntax_error(error, source))
        return None
    return reader.root


def from_python(item: Any, where: str, problems: list[str], depth: int = 0) -> Node:
    """The same tree from mappings and lists, OmegaConf's included (not resolved)."""
    if depth > MAX_DEPTH:
        problems.append(f"{where[:80]}…: found nesting deeper than {MAX_DEPTH}")
        return Node(REFUSED, where)
    if type(item).__module__.partition(".")[0] == "omegaconf":
        item = sys.modules["omegaconf"].OmegaConf.to_container(item, resolve=False)
    if hasattr(item, "item") and getattr(item, "ndim", None) == 0:
        item = item.item()
    if isinstance(item, Mapping):
        nodes: dict[str, Node] = {}
        for key, inner in item.items():
            if not isinstance(key, str):
                problems.append(f"{where}: found key {key!r}, expected text")
                continue
            nodes[key] = from_python(inner, f"{where}.{key}", problems, depth + 1)
        return Node(nodes, where)
    if isinstance(item, str):
        problems += _refused_text(item, where)
        return Node(item, where, item)
    if isinstance(item, Sequence) and not isinstance(item, (bytes, bytearray)):
        items = [
            from_python(inner, f"{where}[{index}]", problems, depth + 1)
            for index, inner in enumerate(item)
        ]
        return Node(items, where)
    if item is not None and not isinstance(item, (bool, int, float)):
        problems.append(
            f"{where}: found {type(item).__name__}, expected text, a number, true, false, "
            "a list or a mapping"
        )
        return Node(REFUSED, where)
    if isinstance(item, float) and not math.isfinite(item):
        problems.append(f"{where}: found {item}, expected a finite number")
        return Node(REFUSED, where)
    return Node(item, where, str(item))


class _Reader:
    """Builds the tree from parser events, without recursion."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source = source
        self.problems = problems
        self.root: Node | None = None
        self.open: list[_Open] = []
        self.nodes = 0
        self.documents = 0

    def read(self, event: yaml.Event) -> bool:
        """Takes one event; False when reading on makes no sense."""
        where = self._where(event)
        if isinstance(event, yaml.AliasEvent):
            self.problems.append(f"{where}: found alias *{event.anchor}; write the value itself")
            self._add(Node(REFUSED, where))
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self.problems.append(f"{where}: found a second document, expected one recipe")
                return False
        elif isinstance(event, yaml.NodeEvent):
            return self._start(event, where)
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            done = self.open.pop()
            self._add(Node(done.items, done.where))
        return True

    def _start(self, event: Any, where: str) -> bool:
        self.nodes += 1
        if len(self.open) >= MAX_DEPTH or self.nodes > MAX_NODES:
            limit = f"nesting deeper than {MAX_DEPTH}"
            if self.nodes > MAX_NODES:
                limit = f"more than {MAX_NODES} values"
            self.problems.append(f"{where}: found {limit}; a recipe is a short list of passes")
            return False
        if event.anchor is not None:
            self.problems.append(f"{where}: found anchor &{event.anchor}; write the value itself")
        if event.tag is not None:
            self.problems.append(f"{where}: found tag {event.tag!r}; recipes hold plain data only")
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event, where)
            return True
        items: list[Node] | dict[str, Node] = (
            {} if isinstance(event, yaml.MappingStartEvent) else []
        )
        inside = self.open[-1] if self.open else None
        if inside is not None and isinstance(inside.items, dict) and inside.key is None:
            self.problems.append(f"{where}: found a list or mapping as a key, expected text")
            return False
        self.open.append(_Open(where, inside.key_place if inside else "", items))
        return True

    def _scalar(self, event: yaml.ScalarEvent, where: str) -> None:
        inside = self.open[-1] if self.open else None
        if inside is not None and isinstance(inside.items, dict) and inside.key is None:
            self.problems += _refused_text(event.value, where)
            self._key(inside, event.value, where)
            return
        self.problems += _refused_text(event.value, where)
        if event.implicit[0]:
            self._add(Node(self._plain(event.value, where), where, event.value))
        else:
            self._add(Node(event.value, where, repr(event.value)))

    def _key(self, inside: _Open, key: str, where: str) -> None:
        if key in inside.seen:
            self.problems.append(
                f"{where}: found key {key!r} again, first at {inside.seen[key]}; keep one of them"
            )
        inside.seen.setdefault(key, where)
        inside.key, inside.key_place = key, where

    def _add(self, node: Node) -> None:
        if not self.open:
            self.root = node
            return
        inside = self.open[-1]
        if isinstance(inside.items, list):
            inside.items.append(node)
        elif inside.key is not None:
            placed = Node(node.value, node.where, node.text, inside.key_place)
            inside.items.setdefault(inside.key, placed)
            inside.key = None

    def _plain(self, text: str, where: str) -> Any:
        """The value of an unquoted word."""
        if text.lower() in _WORDS:
            return _WORDS[text.lower()]
        if _INTEGER.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _TWO_READINGS.fullmatch(text):
            self.problems.append(
                f"{where}: found {text[:40]}, which YAML versions read differently; "
                "write a decimal number, true or false, or quote it to mean the text"
            )
            return REFUSED
        return text

    def _where(self, event: yaml.Event) -> str:
        mark: Any = event.start_mark
        return f"{self.source}:{mark.line + 1}:{mark.column + 1}"


def _refused_text(text: str, where: str) -> Iterator[str]:
    if "${" in text:
        yield f"{where}: found interpolation in {text[:60]!r}; write the value itself"
    if text == "_target_":
        yield f"{where}: found '_target_'; a recipe names passes, it does not import code"


def _syntax_error(error: yaml.YAMLError, source: str) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    where = source if mark is None else f"{source}:{mark.line + 1}:{mark.column + 1}"
    hint = "; indent with spaces" if "'\\t'" in problem or "tab" in problem else ""
    return f"{where}: not YAML: {problem}{hint}"

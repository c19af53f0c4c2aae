"""YAML is read strictly: no coercions, no cycles, every value with its place."""

from collections import UserDict
from typing import Any

import numpy as np
import pytest

from optimize.recipes.options import plain
from optimize.recipes.strict_yaml import MAX_BYTES, decode, from_python, parse


def read(text: str) -> tuple[Any, list[str]]:
    problems: list[str] = []
    node = parse(text, "r.yaml", problems)
    return (None if node is None else plain(node)), problems


def only_problem(text: str) -> str:
    _, problems = read(text)
    assert len(problems) == 1, problems
    return problems[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001),
        ("1.5E3", 1500.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("-7", -7),
        ("+0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("'on'", "on"),
        ('"010"', "010"),
        ("dpm-solver-pp", "dpm-solver-pp"),
        ("2024-01-02", "2024-01-02"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
    ],
)
def test_plain_words_have_one_reading(text: str, expected: object) -> None:
    value, problems = read(f"key: {text}")
    assert problems == []
    assert value == {"key": expected} and type(value["key"]) is type(expected)


@pytest.mark.parametrize(
    "word",
    ["on", "Off", "yes", "NO", "y", "010", "0o17", "0x1f", "0b11", "1_000", "12:30", "1:30:00",
     ".inf", "-.inf", ".nan", "9" * 19, "9" * 5000],
)  # fmt: skip
def test_words_with_two_readings_are_refused(word: str) -> None:
    problem = only_problem(f"a: 1\nkey: {word}")
    assert problem.startswith(
        f"r.yaml:2:6: found {word[:40]}, which YAML versions read differently"
    )
    assert "quote it" in problem


def test_duplicate_keys_name_both_places() -> None:
    problem = only_problem("a: 1\nb: 2\na: 3\n")
    assert problem == "r.yaml:3:1: found key 'a' again, first at r.yaml:1:1; keep one of them"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: !!python/object/apply:os.system [id]", "found tag 'tag:yaml.org,2002:python/object"),
        ("a: !!int '3'", "found tag"),
        ("a: ! b", "found tag '!'"),
        ("a: &x 1", "found anchor &x"),
        ("a: ${oc.env:HOME}", "found interpolation in '${oc.env:HOME}'"),
        ("a: 'x${y}'", "found interpolation"),
        ("_target_: os.system", "found '_target_'"),
        ("a: 1\n---\nb: 2", "r.yaml:2:1: found a second document"),
        ("? [a, b]\n: 1", "found a list or mapping as a key"),
        ("a:\n\t- b", "not YAML"),
        ("a: [1, 2", "not YAML"),
        ("a: \x01", "not YAML"),
    ],
)
def test_refused_with_place(text: str, expected: str) -> None:
    assert expected in only_problem(text)


def test_cycle_and_alias_bomb_are_refused() -> None:
    _, problems = read("a: &x [*x]")
    assert [problem[:12] for problem in problems] == ["r.yaml:1:4: ", "r.yaml:1:8: "]
    bomb = "a: &a [1,1]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)},*{chr(97 + i)}]\n" for i in range(9)
    )
    _, problems = read(bomb)
    assert len(problems) == 28


@pytest.mark.timeout(10)
@pytest.mark.parametrize("text", ["[" * 20_000, "{a: " * 20_000, "- " * 20_000])
def test_deep_nesting_is_refused_early(text: str) -> None:
    assert "found nesting deeper than 32" in only_problem(text)


def test_many_values_are_refused() -> None:
    assert "found more than 10000 values" in only_problem("[" + "1," * 20_000 + "]")


def test_mark_and_line_endings_are_accepted() -> None:
    problems: list[str] = []
    text = decode(b"\xef\xbb\xbfa: 1\r\nb: x\r\n", "r.yaml", problems)
    assert problems == []
    assert read(text) == ({"a": 1, "b": "x"}, [])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: 1\nb: \0", "r.yaml:2: found a NUL byte"),
        (b"a: \xff", "not UTF-8 at offset 3"),
        ("a: 1".encode("utf-16"), "not UTF-8"),
        (b" " * (MAX_BYTES + 1), "expected at most 1 MiB"),
    ],
)
def test_bytes_that_are_no_text_are_refused(content: bytes, expected: str) -> None:
    problems: list[str] = []
    assert decode(content, "r.yaml", problems) == ""
    assert len(problems) == 1 and expected in problems[0]


def test_any_mapping_becomes_the_same_tree() -> None:
    problems: list[str] = []
    node = from_python(UserDict(a=(1, np.float32(0.5)), b=UserDict(c=None)), "recipe", problems)
    assert problems == []
    assert plain(node) == {"a": [1, 0.5], "b": {"c": None}}
    assert node.value["a"].value[1].where == "recipe.a[1]"


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({1: "x"}, "recipe: found key 1, expected text"),
        ({"a": object()}, "recipe.a: found object, expected text"),
        ({"a": float("nan")}, "recipe.a: found nan, expected a finite number"),
        ({"a": "${x}"}, "recipe.a: found interpolation"),
        ({"a": b"x"}, "recipe.a: found bytes"),
    ],
)
def test_python_values_are_checked_too(item: object, expected: str) -> None:
    problems: list[str] = []
    from_python(item, "recipe", problems)
    assert any(expected in problem for problem in problems), problems


def test_self_referencing_dict_is_refused() -> None:
    item: dict[str, object] = {}
    item["a"] = item
    problems: list[str] = []
    from_python(item, "recipe", problems)
    assert len(problems) == 1 and "nesting deeper than 32" in problems[0]

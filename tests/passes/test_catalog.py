"""The list of passes against the folder, and what every pass must say about itself."""

import ast
import dataclasses
from pathlib import Path

import pytest

from optimize.passes.catalog import ORDER, PASSES, order_problem, passes_by_name
from optimize.passes.pass_base import Pass

FOLDER = Path(__file__).parents[2] / "passes"


def pass_modules() -> list[str]:
    """Modules of the folder that define a subclass of `Pass`."""
    found = []
    for path in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(path.read_text())
        bases = [
            base for node in tree.body if isinstance(node, ast.ClassDef) for base in node.bases
        ]
        if any(isinstance(base, ast.Name) and base.id == "Pass" for base in bases):
            found.append(path.stem)
    return found


def test_every_pass_is_listed() -> None:
    missing = sorted(set(pass_modules()) - set(passes_by_name()))
    assert missing == [], f"passes/catalog.py: PASSES lacks {missing}; add a line for each"


@pytest.mark.parametrize("item", PASSES, ids=lambda item: item.name)
def test_pass_documents_itself(item: type[Pass]) -> None:
    assert dataclasses.is_dataclass(item)
    assert item.__dataclass_params__.frozen  # type: ignore[attr-defined]
    text = (item.__doc__ or "") + ((FOLDER / f"{item.name}.py").read_text().split('"""')[1])
    for section in ("Changes:", "Declines when:", "Numerics:", "Source:"):
        assert section in text, f"passes/{item.name}.py: found no {section!r} in its docstring"
    for field in dataclasses.fields(item):
        assert f"{field.name}:" in text or f"{field.name}," in text, (
            f"passes/{item.name}.py: option {field.name!r} is not described under `Args:`"
        )


def test_order_rules_name_the_reason() -> None:
    rule = ORDER[0]
    assert order_problem([rule.first, rule.then], 1) is None
    problem = order_problem([rule.then, rule.first], 1)
    assert problem is not None and rule.reason in problem


def test_a_pass_stands_once() -> None:
    assert "a second time" in str(order_problem(["a", "b", "a"], 2))

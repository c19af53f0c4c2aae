"""Every fault of `rows.py` has a test, and every test it names exists."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
EXPECTED = {*(f"C{number}" for number in range(1, 25)), *(f"E{number}" for number in range(1, 12))}

_spec = importlib.util.spec_from_file_location("reliability_rows", HERE / "rows.py")
assert _spec is not None and _spec.loader is not None
rows = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rows)

# Rows whose product code does not exist yet: engines inside bundles.
PENDING = {"C18", "C19"}


@cache
def functions(file: str) -> frozenset[str]:
    """Names of the test functions of a file."""
    tree = ast.parse((ROOT / file).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_every_row_has_a_test() -> None:
    assert set(rows.ROWS) | PENDING == EXPECTED
    assert not set(rows.ROWS) & PENDING
    assert [name for name, row in rows.ROWS.items() if not row.tests] == []


def test_every_test_named_exists() -> None:
    missing = []
    for name, row in rows.ROWS.items():
        for test in row.tests:
            file, _, function = test.partition("::")
            if not (ROOT / file).is_file() or function not in functions(file):
                missing.append(f"{name}: {test}")
    assert missing == []

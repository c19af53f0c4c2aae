"""The documentation builds, its links lead somewhere, and README's Python is real."""

import ast
import dataclasses
import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from optimize.ir.denoise import DenoiseLoop
from optimize.ir.unmask import Remasking, TimeScale, UnmaskLoop
from optimize.measure.roofline import MACHINES, MEDIAN_ERROR
from optimize.passes.fuse_solver import ADAPTIVE
from optimize.passes.solvers.catalog import SOLVERS, solve
from optimize.passes.solvers.solver_base import Sampling
from optimize.recipes.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
MASKED_PAGE = ROOT / "docs" / "masked_diffusion.md"
SOLVERS_PAGE = ROOT / "docs" / "solvers.md"


def test_builds_a_page_per_pass(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = {path.relative_to(tmp_path).as_posix() for path in module.build(tmp_path)}
    assert {"README.md", "docs/architecture.md", "passes/cache_regions.md", "recipes.md"} <= written
    assert "Declines when:" in (tmp_path / "passes" / "cache_regions.md").read_text()
    assert "## image-fast" in (tmp_path / "recipes.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: found no {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_parses_and_imports_exist(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        lines = block.splitlines()
        indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        tree = ast.parse("\n".join(line[indent:] for line in lines))
        if page.name != "README.md":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def test_solvers_page_has_every_solver_with_its_orders_and_calls() -> None:
    row = r"^\| `(\w+)` \| (1|1 to 3|2, 3) \| ([^|]+) \|"
    rows = re.findall(row, SOLVERS_PAGE.read_text("utf-8"), re.MULTILINE)
    found = {name: (orders, calls) for name, orders, calls in rows}
    expected = {
        name: (
            "1" if item.highest_order == 1 else f"1 to {item.highest_order}",
            "its order" if item.calls_per_step is None else str(item.calls_per_step),
        )
        for name, item in SOLVERS.items()
    }
    assert {name: found.get(name) for name in SOLVERS} == expected
    assert ADAPTIVE in found


def test_solvers_page_recipe_loads(tmp_path: Path) -> None:
    (text,) = blocks(SOLVERS_PAGE, "yaml")
    (tmp_path / "r.yaml").write_text(text)
    assert [entry.item.name for entry in Recipe.load(tmp_path / "r.yaml").passes] == ["fuse_solver"]


@pytest.mark.parametrize("prediction", ["flow", "epsilon"])
def test_solvers_page_example_is_the_solver_it_says(prediction) -> None:
    (text,) = blocks(SOLVERS_PAGE, "python")
    names: dict = {}
    exec(text, names)
    run = Sampling(DenoiseLoop(prediction=prediction).levels, 6, prediction)
    np.testing.assert_allclose(
        names["my_solver"](run).matrices, solve("ddim", run).matrices, rtol=1e-9, atol=1e-12
    )


def test_cost_model_page_has_the_machines_and_the_error_stated() -> None:
    text = (ROOT / "docs" / "cost_model.md").read_text("utf-8")
    assert [name for name in MACHINES if f"| {name} |" not in text] == []
    (median,) = re.findall(r"^\| of requests \| \d+ \| ([\d.]+) % \|", text, re.MULTILINE)
    assert round(float(median)) == round(100 * MEDIAN_ERROR)


def test_masked_diffusion_page_has_every_field_of_a_loop_and_what_it_may_be() -> None:
    text = MASKED_PAGE.read_text("utf-8")
    table = text[text.index("| field of `UnmaskLoop` |") :].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| (.+) \|$", table, re.MULTILINE)
    fields = {field.name: field.default for field in dataclasses.fields(UnmaskLoop)}
    assert [name for name, _, _ in rows] == list(fields)
    defaults = {name: default.strip("`") for name, default, _ in rows}
    for name, default in fields.items():
        if isinstance(default, (int, str)):
            assert defaults[name] == str(default).lower()
    meanings = {name: meaning for name, _, meaning in rows}
    assert all(f"`{kind}`" in meanings["remasking"] for kind in get_args(Remasking))
    assert all(kind in meanings["time"] for kind in get_args(TimeScale))


def test_masked_diffusion_page_recipe_and_loops_are_accepted(tmp_path: Path) -> None:
    (text,) = blocks(MASKED_PAGE, "yaml")
    (tmp_path / "r.yaml").write_text(text)
    names = [entry.item.name for entry in Recipe.load(tmp_path / "r.yaml").passes]
    assert names == ["first_hitting", "energy_resample"]
    (loops,) = [block for block in blocks(MASKED_PAGE, "python") if "llada =" in block]
    found: dict[str, Any] = {}
    exec(loops.split("\nprogram =")[0], found)
    assert (found["llada"].blocks, found["dream"].shifted, found["mdlm"].calls) == (4, True, 1000)

"""The documentation builds, its links lead somewhere, and README's Python is real."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


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

"""The folders, the links that make them one package, and who may import whom."""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKED = ("runtime", "kernels", "passes", "recipes")
WITHOUT_INIT = ("kernels", "passes", "recipes")

# Layer → the layers it may import, besides itself. docs/architecture.md has the picture.
HOUSE = ["runtime", "kernels", "ir", "measure"]
ALLOWED: dict[str, list[str]] = {
    "runtime": [],
    "kernels": [],
    "ir": ["runtime", "kernels"],
    "measure": ["runtime", "kernels", "ir"],
    "capture": HOUSE,
    "export": HOUSE,
    "gate": [*HOUSE, "report", "passes", "recipes"],
    "report": HOUSE,
    "passes": [*HOUSE, "capture", "export", "report"],
    "recipes": [*HOUSE, "capture", "export", "report", "passes"],
    "the face": [*HOUSE, "capture", "export", "gate", "report", "passes", "recipes"],
}
FACE = ("api", "cli", "commands", "write_bundle")


def layer_of(module: str) -> str:
    """The layer of a dotted module name of ours."""
    parts = module.split(".")
    if len(parts) == 1 or parts[1] in FACE:
        return "the face"
    return parts[1]


def module_name(path: Path) -> str:
    """`passes/fuse.py` → `optimize.passes.fuse`."""
    parts = path.with_suffix("").parts
    if parts[0] != "optimize":
        parts = ("optimize", *parts)
    return ".".join(part for part in parts if part != "__init__")


def imported_modules(source: str) -> Iterator[str]:
    """Every module of ours a file imports: in functions, under TYPE_CHECKING and by name, too."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            # `from optimize import runtime` imports the folder, `from optimize import Recipe` the
            # face.
            names = [
                f"optimize.{alias.name}" if alias.name in ALLOWED else node.module
                for alias in node.names
                if node.module == "optimize"
            ] or [node.module]
        elif isinstance(node, ast.Call) and node.args:
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            first = node.args[0]
            if name in ("import_module", "__import__") and isinstance(first, ast.Constant):
                names = [str(first.value)]
        for name in names:
            if name.split(".")[0] == "optimize":
                yield name


def violations(path: Path, source: str) -> str | None:
    """What is wrong with the imports of a file, or None."""
    layer = layer_of(module_name(path))
    if layer not in ALLOWED:
        return f"{path}: found folder {layer!r}, expected one of {', '.join(ALLOWED)}"
    allowed = ALLOWED[layer]
    found = {layer_of(name) for name in imported_modules(source)}
    wrong = sorted(found - set(allowed) - {layer})
    if wrong:
        return f"{path}: {layer}/ may import {allowed}, found {wrong}"
    return None


def our_files() -> list[Path]:
    """Every Python file of the package, once, by its real path."""
    folders = [ROOT / name for name in ("optimize", *LINKED)]
    files = {path.resolve() for folder in folders for path in folder.rglob("*.py")}
    return sorted(path.relative_to(ROOT) for path in files)


@pytest.mark.parametrize("folder", LINKED)
def test_folder_is_linked_into_the_package(folder: str) -> None:
    link = ROOT / "optimize" / folder
    assert link.is_symlink() and link.resolve() == ROOT / folder, (
        f"optimize/{folder}: found no link to ../{folder}; "
        "clone again with `git clone -c core.symlinks=true`"
    )


@pytest.mark.parametrize("folder", WITHOUT_INIT)
def test_folder_has_no_init_file(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists(), (
        f"{folder}/__init__.py: expected none; with it, `import {folder}` in the checkout root "
        "finds ours instead of the library of that name"
    )


def test_imports_follow_the_order() -> None:
    files = our_files()
    assert len(files) > 10
    problems = [violations(path, (ROOT / path).read_text()) for path in files]
    assert [problem for problem in problems if problem] == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("kernels/a/b.py", "import optimize.passes.x", "kernels/ may import [], found ['passes']"),
        (
            "optimize/ir/a.py",
            "def f():\n    from optimize.measure.cost import x",
            "ir/ may import ['runtime', 'kernels'], found ['measure']",
        ),
        ("passes/a.py", "from optimize import optimize", "found ['the face']"),
        ("runtime/a.py", "if TYPE_CHECKING:\n    from optimize import ir", "found ['ir']"),
        ("runtime/a.py", "import_module('optimize.ir.graph')", "found ['ir']"),
        ("optimize/export/a.py", "import optimize.capture.b", "found ['capture']"),
        ("optimize/report/a.py", "from optimize.commands import demo", "found ['the face']"),
        ("optimize/surprise/a.py", "", "found folder 'surprise'"),
    ],
)
def test_wrong_imports_are_named(path: str, source: str, expected: str) -> None:
    assert expected in str(violations(Path(path), source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("passes/a.py", "import torch, optimize.ir.graph\nfrom optimize.passes.pass_base import P"),
        ("optimize/api.py", "from optimize.recipes.recipe import Recipe"),
        ("optimize/commands/demo.py", "from optimize import optimize"),
        ("runtime/a.py", "from optimize.runtime.loop import Loop"),
    ],
)
def test_right_imports_pass(path: str, source: str) -> None:
    assert violations(Path(path), source) is None


MAX_LINES = 400


def test_files_stay_short() -> None:
    long = {
        str(path): lines
        for path in our_files()
        if (lines := len((ROOT / path).read_text().splitlines())) > MAX_LINES
    }
    assert long == {}, f"files of more than {MAX_LINES} lines: {long}; split them"


def test_no_module_is_loaded_twice() -> None:
    import optimize.passes.pass_base
    import optimize.runtime.loop  # noqa: F401

    names = defaultdict(set)
    for name, module in list(sys.modules.items()):
        # pytest imports runtime/__init__.py, which defines nothing, to place tests/runtime.
        if name == "runtime":
            continue
        file = getattr(module, "__file__", None)
        if file and Path(file).resolve().is_relative_to(ROOT) and "/.venv/" not in file:
            names[Path(file).resolve()].add(name)
    twice = {str(file): sorted(copies) for file, copies in names.items() if len(copies) > 1}
    assert twice == {}, f"loaded under two names: {twice}; import from `optimize.` only"

"""Loads Python files that are in no package: benchmarks, examples, the documentation's builder."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


def module_at(path: Path) -> ModuleType:
    """The module of a file; it is entered under its name, where dataclasses look it up."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def benchmark(name: str) -> Iterator[ModuleType]:
    """The module of a benchmark, which may import those beside it while this is open."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield module_at(BENCHMARKS / f"{name}.py")
    finally:
        sys.path.remove(str(BENCHMARKS))

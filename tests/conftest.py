"""Fixtures shared by all tests: one capture per model family and dtype."""

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch

from optimize.capture.from_denoiser import capture
from optimize.ir.program import Program
from optimize.recipes.zoo.families import FAMILIES, Example, example

torch.set_num_threads(1)

Captured = Callable[[str, torch.dtype], tuple[Example, Program]]


@lru_cache(maxsize=None)
def _captured(name: str, dtype: torch.dtype) -> tuple[Example, Program]:
    made = example(name, dtype=dtype)
    return made, capture(made.module, made.inputs, loop=made.loop(8))


@pytest.fixture(scope="session")
def captured() -> Captured:
    """(family, dtype) → (example, captured program of 8 steps); captured once a session."""
    return _captured


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Each of the eight model families."""
    return str(request.param)

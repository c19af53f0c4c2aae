"""Fixtures shared by all tests: a tiny program, and one capture per model family and dtype."""

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from torch import nn

from optimize.capture.from_denoiser import capture
from optimize.ir.denoise import DenoiseLoop
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, found none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


class TinyDenoiser(nn.Module):
    """One self-attention block over six tokens of width four."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)
        self.out = nn.Linear(4, 4)

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, shift: torch.Tensor
    ) -> torch.Tensor:
        tokens = hidden_states + timestep[:, None, None] * 0.001
        heads = tokens.reshape(tokens.shape[0], 1, 6, 4)
        attended = nn.functional.scaled_dot_product_attention(self.query(heads), heads, heads)
        return self.out(attended.squeeze(1)) + shift[:, None, None]


@pytest.fixture(scope="session")
def toy_program() -> Program:
    """Four Euler steps of a tiny denoiser; a request takes `shift` [batch]."""
    torch.manual_seed(0)
    return capture(
        TinyDenoiser().eval(),
        {
            "hidden_states": torch.randn(2, 6, 4),
            "timestep": torch.tensor([1.0, 1.0]),
            "shift": torch.tensor([0.5, -0.5]),
        },
        loop=DenoiseLoop(steps=4),
    )

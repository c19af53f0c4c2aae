"""Fixtures shared by all tests: a tiny program, and one capture per model family and dtype."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from optimize.capture.from_denoiser import capture
from optimize.capture.from_module import trace
from optimize.export.bundle import export_bundle
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.program import Program
from optimize.ir.torch_engine import DTYPE_NAMES
from optimize.recipes.zoo.families import FAMILIES, Example, example
from optimize.runtime.loop import (
    Binding,
    Call,
    Destination,
    Input,
    Loop,
    Noise,
    Repeat,
    Signature,
    Slot,
)

torch.set_num_threads(1)

Captured = Callable[[str, torch.dtype], tuple[Example, Program]]


@cache
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


class TinyBlock(torch.nn.Module):
    """A DiT block: attention and MLP, both modulated by the conditioning."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = torch.nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm_mlp = torch.nn.LayerNorm(width)
        self.query_key_value = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)
        self.up = torch.nn.Linear(width, 4 * width)
        self.down = torch.nn.Linear(4 * width, width)
        self.modulation = torch.nn.Linear(width, 4 * width)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.silu(condition)
        scale, shift, gate, gate_mlp = self.modulation(hidden)[:, None].chunk(4, -1)
        projected = self.query_key_value(self.norm_attention(x) * (1 + scale) + shift)
        heads = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(*heads)
        x = x + gate * self.out(mixed.transpose(1, 2).flatten(2))
        hidden = torch.nn.functional.gelu(self.up(self.norm_mlp(x)), approximate="tanh")
        return x + gate_mlp * self.down(hidden)


class TinyStep(torch.nn.Module):
    """One Euler step of a class-conditional flow model on 1 x 8 x 8 pictures."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch = torch.nn.Conv2d(1, width, 2, 2)
        self.time = torch.nn.Linear(16, width)
        self.label = torch.nn.Embedding(11, width)
        self.blocks = torch.nn.ModuleList(TinyBlock(width, 2) for _ in range(2))
        self.pixels = torch.nn.Linear(width, 4)

    def forward(
        self,
        latent: torch.Tensor,
        timestep: torch.Tensor,
        change: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        angles = torch.exp(-torch.arange(8) * 0.5) * timestep * 100
        wave = torch.cat([angles.cos(), angles.sin()], -1)[None].to(latent.dtype)
        condition = self.time(wave) + self.label(labels)
        x = self.patch(latent).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, condition)
        x = self.pixels(x).reshape(-1, 4, 4, 2, 2).permute(0, 1, 3, 2, 4)
        return (latent + change * x.reshape(-1, 1, 8, 8)).to(latent.dtype)


@cache
def _tiny(dtype: torch.dtype) -> Program:
    torch.manual_seed(0)
    module = TinyStep().to(dtype)
    arguments = {
        "latent": torch.randn(2, 1, 8, 8, dtype=dtype),
        "timestep": torch.tensor(0.5),
        "change": torch.tensor(-0.1),
        "labels": torch.tensor([1, 2]),
    }
    traced = trace(module.eval(), arguments, ("latent_next",), 2, True)
    name = DTYPE_NAMES[dtype]
    shape = ("batch", 1, 8, 8)
    call = Call(
        graph="step",
        inputs={
            "latent": Binding(source="state", name="latent"),
            "timestep": Binding(source="table", name="timestep"),
            "change": Binding(source="table", name="change"),
            "labels": Binding(source="request", name="labels"),
        },
        outputs={"latent_next": Destination(state="latent")},
    )
    noise = Binding(source="noise", name="latent")
    times = np.linspace(1.0, 0.0, 5)
    return Program(
        graphs={"step": traced.graph},
        weights=traced.weights,
        loop=Loop(
            slots=(Slot(name="latent", dtype=name, shape=shape, initial=noise),),
            noise=(Noise(name="latent", dtype=name, shape=shape),),
            body=(Repeat(steps=("step",) * 4, bodies={"step": (call,)}),),
            results={"image": "latent"},
        ),
        tables={
            "timestep": times[:-1].astype(np.float32),
            "change": np.diff(times).astype(np.float32),
        },
        signature=Signature(
            inputs=(Input(name="labels", dtype="int64", shape=("batch",), low=0, high=10),),
            dimensions={"batch": (1, 16)},
            outputs=("image",),
        ),
    )


@pytest.fixture(scope="session")
def tiny_program() -> Callable[..., Program]:
    """dtype → a hand-made program: four Euler steps of a two-block DiT; made once a session."""
    return lambda dtype=torch.float32: _tiny(dtype)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny program; copy it before changing it."""
    return export_bundle(_tiny(torch.float32), tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny program's bundle, to be damaged."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))

"""Bundles that gates compare: one model, another number of steps, another model."""

import pytest
import torch

from optimize.capture.from_denoiser import capture
from optimize.ir.denoise import DenoiseLoop
from tests.conftest import TinyDenoiser


def _bundle(folder, name, steps=8, model=None):
    torch.manual_seed(0)
    example = {
        "hidden_states": torch.randn(2, 6, 4),
        "timestep": torch.tensor([1.0, 1.0]),
        "shift": torch.tensor([0.5, -0.5]),
    }
    torch.manual_seed(1)
    module = (model or TinyDenoiser)().eval()
    program = capture(module, example, loop=DenoiseLoop(steps=steps))
    return program.export(folder / name, example=True)


class OtherDenoiser(TinyDenoiser):
    """The same request and result, another graph."""

    def forward(self, hidden_states, timestep, shift):
        return super().forward(hidden_states, timestep, shift).tanh()


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """Name → folder: "base", "again" (the same), "longer" (more steps), "other" (another model)."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "base": _bundle(folder, "base"),
        "again": _bundle(folder, "again"),
        "longer": _bundle(folder, "longer", steps=64),
        "other": _bundle(folder, "other", model=OtherDenoiser),
    }

"""The heads are exact: the same network, said in other words."""

import numpy as np
import pytest
import torch

from optimize.capture.capture_model import capture_model
from optimize.commands.models import load_model
from optimize.passes.fuse_solver import FuseSolver
from optimize.passes.solvers.consistency import better_reading
from optimize.recipes.zoo.digits_dit import load_digits_dit
from optimize.recipes.zoo.digits_heads import SCHEDULE, DigitsHead


@pytest.mark.parametrize("time", [1.0, 250.5, 998.0])
def test_heads_agree_with_the_flow(time: float) -> None:
    flow = load_digits_dit()
    torch.manual_seed(0)
    latent, labels = torch.randn(2, 1, 32, 32), torch.tensor([3, 8])
    path = SCHEDULE.path
    (alpha,), (sigma,) = path.split(path.level(np.array([time])))
    level = sigma / (alpha + sigma)
    with torch.no_grad():
        velocity = flow(latent / (alpha + sigma), torch.full((2,), 1000 * level), labels)
        clean = latent / (alpha + sigma) - level * velocity
        noise = (latent - alpha * clean) / sigma
        expected = {"epsilon": noise, "denoised": clean, "v": alpha * noise - sigma * clean}
        for prediction, output in expected.items():
            head = DigitsHead(flow, prediction).eval()  # type: ignore[arg-type]
            found = head(latent, torch.full((2,), time), labels)
            assert float((found - output).abs().max()) < 2e-3 * float(output.abs().max())


@pytest.mark.parametrize("name", ["epsilon", "v"])
def test_zoo_models_run_and_are_what_they_say(name: str) -> None:
    zoo = load_model(f"zoo:digits-dit-{name}")
    program = capture_model(zoo.model, zoo.example_inputs, loop=zoo.loop)
    request = {"class_labels": np.arange(2)}
    assert better_reading(program, request) is None
    fused = FuseSolver("dpm_solver_pp", steps=6).rewrite(program).program
    image = fused(seed=0, **request)["latent"]
    assert 0.7 < float(image.abs().max()) < 1.6

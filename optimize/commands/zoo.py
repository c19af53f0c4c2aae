"""The zoo's models as MODEL arguments: with example inputs and the loop they are sampled with."""

import torch

from optimize.commands.models import LoadedModel
from optimize.ir.denoise import DenoiseLoop
from optimize.recipes.zoo.digits_dit import load_digits_dit

BASELINE_STEPS = 50
EXAMPLE_BATCH = 2
IMAGE_SIZE = 32


def load_digits(name: str) -> LoadedModel:
    """The digits DiT with fifty Euler steps, its baseline."""
    inputs = {
        "hidden_states": torch.zeros(EXAMPLE_BATCH, 1, IMAGE_SIZE, IMAGE_SIZE),
        "timestep": torch.zeros(EXAMPLE_BATCH),
        "class_labels": torch.arange(EXAMPLE_BATCH),
    }
    return LoadedModel(name, load_digits_dit(), inputs, DenoiseLoop(steps=BASELINE_STEPS))

"""The zoo's models as MODEL arguments: with example inputs and the loop they are sampled with."""

from collections.abc import Callable

import torch

from optimize.commands.models import LoadedModel
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.torus_flow import TorusFlowLoop
from optimize.recipes.zoo.crystal_data import load_crystals
from optimize.recipes.zoo.digits_dit import load_digits_dit
from optimize.recipes.zoo.torus_crystals import (
    FLOW_STEPS,
    LARGEST_CONCENTRATION,
    load_torus_crystals,
)

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


def load_crystal_flow(name: str) -> LoadedModel:
    """The crystal flow with the ten steps of its training; a request is elements and lattices."""
    crystals = load_crystals().held_out.rows(slice(0, EXAMPLE_BATCH))
    inputs = {
        "mean": torch.zeros(crystals.coordinates.shape),
        "concentration": torch.zeros(crystals.coordinates.shape),
        "step_index": torch.ones(EXAMPLE_BATCH),
        "atom_types": crystals.atom_types,
        "lattice": crystals.lattice,
    }
    loop = TorusFlowLoop(steps=FLOW_STEPS, last_concentration=LARGEST_CONCENTRATION)
    return LoadedModel(name, load_torus_crystals(), inputs, loop)


LOADERS: dict[str, Callable[[str], LoadedModel]] = {
    "digits-dit": load_digits,
    "torus-crystals": load_crystal_flow,
}
"""Name in the zoo → what loads it."""

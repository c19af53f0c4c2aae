"""Trains the crystal network on one CPU core, as the Bayesian flow or as the diffusion baseline.

    python -m optimize.recipes.zoo.train_torus_crystals --kind flow
    python -m optimize.recipes.zoo.train_torus_crystals --kind diffusion

Muon moves the matrices of the layers, AdamW everything else; both rates are flat after a short
warm-up and fall linearly to zero over the last part. A moving average of the weights is kept.
"""

import argparse
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from optimize.recipes.zoo.crystal_data import CrystalData, Crystals, distorted, load_crystals
from optimize.recipes.zoo.crystal_diffusion import diffusion_loss, sample_diffusion
from optimize.recipes.zoo.crystal_flow import flow_loss, sample_flow
from optimize.recipes.zoo.crystal_match import match_rate
from optimize.recipes.zoo.torus_crystals import CrystalNetwork, TorusCrystals
from optimize.recipes.zoo.training import RunOptions, run_training

BATCH_PARTS = 2
"""Parts of like size that a batch is cut into: less padding to compute."""

CHECK_STEPS = 100
"""Steps of the diffusion baseline at quality checks."""


@dataclass(frozen=True)
class TrainingOptions(RunOptions):
    """Options of a training run.

    Attributes:
        kind: what to train: a Bayesian flow, or the score of the diffusion baseline.
        check_samples: held-out structures generated at each check.
    """

    kind: Literal["flow", "diffusion"] = "flow"
    check_samples: int = 128
    steps: int = 3200
    batch_size: int = 96
    matrix_rate: float = 0.016
    other_rate: float = 4e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    decay_share: float = 0.7
    check_every: int = 800


def make_optimizers(
    network: CrystalNetwork, options: TrainingOptions
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        is_output = "to_shift" in name
        is_layer_matrix = name.startswith("layers.") and parameter.ndim == 2 and not is_output
        (matrices if is_layer_matrix else others).append(parameter)
    decay = options.weight_decay
    return [
        torch.optim.Muon(matrices, lr=options.matrix_rate, weight_decay=decay),
        torch.optim.AdamW(others, lr=options.other_rate, weight_decay=decay, betas=(0.9, 0.99)),
    ]


def moved_angles(crystals: Crystals, generator: np.random.Generator) -> torch.Tensor:
    """Distorted coordinates with a random origin each, as angles, [B, atoms, 3], in [-pi, pi]."""
    fresh = distorted(crystals, generator).coordinates
    origin = torch.from_numpy(generator.uniform(size=(len(crystals), 1, 3))).float()
    return 2 * math.pi * torch.remainder(fresh + origin, 1.0) - math.pi


def training_loss(
    network: CrystalNetwork,
    crystals: Crystals,
    options: TrainingOptions,
    generator: np.random.Generator,
) -> torch.Tensor:
    """The loss of one batch, a scalar."""
    total = torch.zeros(())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bfloat16):
        for rows, part in crystals.by_size(-(-len(crystals) // BATCH_PARTS)):
            angles = moved_angles(part, generator)
            if options.kind == "flow":
                loss = flow_loss(TorusCrystals(network), angles, part, generator)
            else:
                loss = diffusion_loss(network, angles, part, generator)
            total = total + loss * (len(rows) / len(crystals))
    return total


def check_match_rate(network: CrystalNetwork, crystals: Crystals, kind: str) -> float:
    """Match rate of one generated structure each, seed fixed."""
    generator = np.random.default_rng(1)
    if kind == "flow":
        return match_rate(crystals, sample_flow(TorusCrystals(network), crystals, generator))
    return match_rate(crystals, sample_diffusion(network, crystals, generator, CHECK_STEPS))


def train(network: CrystalNetwork, data: CrystalData, options: TrainingOptions, out: Path) -> None:
    """Trains on the train split; writes weights and, beside them, how they came about, to `out`."""
    generator = np.random.default_rng(options.seed)
    checked = data.held_out.rows(
        np.random.default_rng(0).permutation(len(data.held_out))[: options.check_samples]
    )

    def loss_of_batch() -> torch.Tensor:
        chosen = generator.integers(len(data.train), size=options.batch_size)
        return training_loss(network, data.train.rows(chosen), options, generator)

    def check(averaged: CrystalNetwork) -> dict[str, float]:
        return {"match_rate": check_match_rate(averaged, checked, options.kind)}

    weights = out / f"{weights_name(options.kind)}.safetensors"
    optimizers = make_optimizers(network, options)
    run_training(network, loss_of_batch, check, options, weights, optimizers, math.inf)


def weights_name(kind: str) -> str:
    """File name of the weights, without suffix."""
    return "torus_crystals" if kind == "flow" else "torus_crystals_diffusion"


def main() -> None:
    """Trains with the options of the command line."""
    parser = argparse.ArgumentParser(description="Trains the crystal network on one CPU core.")
    defaults = TrainingOptions()
    parser.add_argument("--kind", choices=("flow", "diffusion"), default=defaults.kind)
    whole = ("steps", "batch_size", "seed", "check_every")
    real = ("matrix_rate", "other_rate", "decay_share")
    for name in (*whole, *real):
        flag, kind = "--" + name.replace("_", "-"), int if name in whole else float
        parser.add_argument(flag, type=kind, default=getattr(defaults, name))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--start", type=Path, help="weights to go on from")
    arguments = vars(parser.parse_args())
    out, start = arguments.pop("out"), arguments.pop("start")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    options = TrainingOptions(**arguments)
    torch.manual_seed(options.seed)
    network = CrystalNetwork()
    if start is not None:
        network.load_state_dict(load_file(start))
    train(network, load_crystals(), options, out)


if __name__ == "__main__":
    main()

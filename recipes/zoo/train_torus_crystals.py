"""Trains the crystal network on one CPU core, as the Bayesian flow or as the diffusion baseline.

    python -m optimize.recipes.zoo.train_torus_crystals --kind flow
    python -m optimize.recipes.zoo.train_torus_crystals --kind diffusion

Muon moves the matrices of the layers, AdamW everything else; both rates are flat after a short
warm-up and fall linearly to zero over the last part. A moving average of the weights is kept.
"""

import argparse
import hashlib
import json
import math
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from optimize.recipes.zoo.crystal_data import CrystalData, Crystals, distorted, load_crystals
from optimize.recipes.zoo.crystal_diffusion import diffusion_loss, sample_diffusion
from optimize.recipes.zoo.crystal_flow import flow_loss, sample_flow
from optimize.recipes.zoo.crystal_match import match_rate
from optimize.recipes.zoo.torus_crystals import CrystalNetwork, TorusCrystals
from optimize.recipes.zoo.training import RunOptions, rate_share

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
    average = torch.optim.swa_utils.AveragedModel(
        network, avg_fn=lambda slow, fast, _: slow.lerp(fast, 1 - options.average_decay)
    )
    averaged = average.module
    assert isinstance(averaged, CrystalNetwork)
    optimizers = make_optimizers(network, options)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step, options))
        for optimizer in optimizers
    ]
    cpu_start, recent_loss = time.process_time(), 0.0
    checked = data.held_out.rows(
        np.random.default_rng(0).permutation(len(data.held_out))[: options.check_samples]
    )
    for step in range(1, options.steps + 1):
        chosen = generator.integers(len(data.train), size=options.batch_size)
        loss = training_loss(network, data.train.rows(chosen), options, generator)
        torch.autograd.backward(loss)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        average.update_parameters(network)
        recent_loss = loss.item() if step == 1 else 0.98 * recent_loss + 0.02 * loss.item()
        if step % 100 == 0:
            seconds = time.process_time() - cpu_start
            print(f"step {step:5d}  loss {recent_loss:.4f}  cpu {seconds:6.0f} s", flush=True)
        if step % options.check_every == 0 or step == options.steps:
            rate = check_match_rate(averaged, checked, options.kind)
            record = {
                "options": asdict(options),
                "parameters": sum(parameter.numel() for parameter in network.parameters()),
                "step": step,
                "loss": recent_loss,
                "cpu_seconds": time.process_time() - cpu_start,
                "check_match_rate": rate,
            }
            write_result(averaged, record, out / f"{weights_name(options.kind)}.safetensors")
            print(f"step {step:5d}  match rate {rate:.3f}", flush=True)


def weights_name(kind: str) -> str:
    """File name of the weights, without suffix."""
    return "torus_crystals" if kind == "flow" else "torus_crystals_diffusion"


def write_result(network: CrystalNetwork, record: dict[str, object], path: Path) -> None:
    """Writes the weights and the record with their digest beside them."""
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    record = {**record, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


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

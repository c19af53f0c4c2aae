"""Trains the digits DiT on one CPU core and writes its weights and metrics.

    python -m optimize.recipes.zoo.train_digits_dit --steps 2300 --out recipes/zoo

Muon moves the matrices of the blocks, AdamW everything else; both rates are flat after a short
warm-up and fall linearly to zero over the last part. A moving average of the weights is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from optimize.recipes.zoo.digits_data import NULL_LABEL, DigitsData, DigitsSplit, load_digits_data
from optimize.recipes.zoo.digits_dit import DigitsDiT
from optimize.recipes.zoo.digits_judge import DigitsJudge
from optimize.recipes.zoo.digits_sampling import (
    TIMESTEPS_PER_SIGMA,
    balanced_labels,
    draw_noise,
    sample_digits,
    sigma_schedule,
)


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a training run.

    Attributes:
        steps: optimizer steps.
        batch_size: images per step.
        matrix_rate: Muon's learning rate, for the matrices of the blocks.
        other_rate: AdamW's learning rate, for everything else.
        weight_decay: of both optimizers, per unit of learning rate.
        warmup_steps: steps over which the rates rise from 0.
        decay_share: share of the steps, at the end, over which they fall to 0; in (0, 1].
        label_drop: probability that a label is replaced by the null label.
        logit_mean: mean of log(sigma / (1 - sigma)). Above 0 because neighbouring pixels of an
            enlarged digit agree, so its shape is settled at high noise.
        logit_deviation: standard deviation of the same.
        average_decay: decay of the moving average of the weights, per step.
        check_every: steps between quality checks.
        check_samples: images drawn at each check.
        bfloat16: run forward and backward in bfloat16 autocast.
        seed: of the initial weights and all that is drawn.
    """

    steps: int = 2300
    batch_size: int = 32
    matrix_rate: float = 0.02
    other_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 40
    decay_share: float = 0.4
    label_drop: float = 0.1
    logit_mean: float = 0.9
    logit_deviation: float = 1.3
    average_decay: float = 0.996
    check_every: int = 400
    check_samples: int = 160
    bfloat16: bool = True
    seed: int = 0


def draw_sigmas(options: TrainingOptions, generator: torch.Generator) -> torch.Tensor:
    """Noise levels of one batch, [B], in (0, 1): logit-normal, one from each of B quantiles."""
    count = options.batch_size
    cell = torch.randperm(count, generator=generator)
    quantile = (cell + torch.rand(count, generator=generator)) / count
    normal = torch.special.ndtri(quantile.clamp(1e-4, 1 - 1e-4))
    sigma: torch.Tensor = torch.sigmoid(options.logit_mean + options.logit_deviation * normal)
    return sigma


def flow_loss(
    model: DigitsDiT,
    clean: torch.Tensor,
    labels: torch.Tensor,
    options: TrainingOptions,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean squared error of the predicted velocity, a scalar.

    Args:
        clean: [B, 1, 32, 32], images.
        labels: [B], int64, in [0, 9].
    """
    sigma = draw_sigmas(options, generator)
    noise = torch.randn(clean.shape, generator=generator)
    dropped = torch.rand(len(labels), generator=generator) < options.label_drop
    labels = labels.masked_fill(dropped, NULL_LABEL)
    weight = sigma[:, None, None, None]
    latent = (1 - weight) * clean + weight * noise
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bfloat16):
        velocity = model(latent, sigma * TIMESTEPS_PER_SIGMA, labels)
    return F.mse_loss(velocity.float(), noise - clean)


def make_optimizers(model: DigitsDiT, options: TrainingOptions) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_block_matrix = name.startswith("blocks.") and parameter.ndim == 2
        (matrices if is_block_matrix else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=options.matrix_rate, weight_decay=options.weight_decay),
        torch.optim.AdamW(
            others, lr=options.other_rate, weight_decay=options.weight_decay, betas=(0.9, 0.99)
        ),
    ]


def rate_share(step: int, options: TrainingOptions) -> float:
    """Learning rate at a step as a share of its peak, in [0, 1]."""
    rising = min(1.0, (step + 1) / options.warmup_steps)
    falling = (options.steps - step) / (options.decay_share * options.steps)
    return min(rising, falling, 1.0)


def batches(
    split: DigitsSplit, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches without end; every image comes once before any comes twice."""
    rows = torch.empty(0, dtype=torch.int64)
    while True:
        while len(rows) < batch_size:
            rows = torch.cat([rows, torch.randperm(len(split), generator=generator)])
        chosen, rows = rows[:batch_size], rows[batch_size:]
        yield split.images[chosen], split.labels[chosen]


def check_quality(model: DigitsDiT, judge: DigitsJudge, count: int, steps: int) -> dict[str, float]:
    """Frechet distance and judge accuracy of fresh samples, seed and labels fixed."""
    labels = balanced_labels(count)
    images = sample_digits(model, draw_noise(count, seed=1), labels, sigma_schedule(steps))
    return {
        "frechet": judge.frechet(images),
        "accuracy": judge.accuracy(images, labels),
    }


def train(model: DigitsDiT, data: DigitsData, options: TrainingOptions, out: Path) -> None:
    """Trains on the train split; writes `digits_dit.safetensors` and `digits_dit.json` to `out`."""
    generator = torch.Generator().manual_seed(options.seed)
    judge = DigitsJudge.fit(data)
    average = torch.optim.swa_utils.AveragedModel(
        model, avg_fn=lambda slow, fast, _: slow.lerp(fast, 1 - options.average_decay)
    )
    averaged = average.module
    assert isinstance(averaged, DigitsDiT)
    optimizers = make_optimizers(model, options)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step, options))
        for optimizer in optimizers
    ]
    cpu_start, recent_loss = time.process_time(), 0.0
    source = batches(data.train, options.batch_size, generator)
    for step in range(1, options.steps + 1):
        clean, labels = next(source)
        loss = flow_loss(model, clean, labels, options, generator)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        average.update_parameters(model)
        recent_loss = loss.item() if step == 1 else 0.98 * recent_loss + 0.02 * loss.item()
        if step % 50 == 0:
            seconds = time.process_time() - cpu_start
            print(f"step {step:5d}  loss {recent_loss:.4f}  cpu {seconds:6.0f} s", flush=True)
        if step % options.check_every == 0 or step == options.steps:
            quality = check_quality(averaged, judge, options.check_samples, steps=10)
            write_result(averaged, options, step, recent_loss, cpu_start, quality, out)
            print(f"step {step:5d}  {quality}", flush=True)


def write_result(
    model: DigitsDiT,
    options: TrainingOptions,
    step: int,
    loss: float,
    cpu_start: float,
    quality: dict[str, float],
    out: Path,
) -> None:
    """Writes the weights and, beside them, how they came about."""
    weights = out / "digits_dit.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    metrics = {
        "options": asdict(options),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "step": step,
        "loss": loss,
        "cpu_seconds": time.process_time() - cpu_start,
        "check": quality,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    (out / "digits_dit.json").write_text(json.dumps(metrics, indent=2) + "\n")


def main() -> None:
    """Trains with the options of the command line."""
    parser = argparse.ArgumentParser(description="Trains the digits DiT on one CPU core.")
    defaults = TrainingOptions()
    for name in ("steps", "batch_size", "seed", "check_every"):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, default=getattr(defaults, name))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    options = TrainingOptions(**arguments)
    torch.manual_seed(options.seed)
    train(DigitsDiT(), load_digits_data(), options, out)


if __name__ == "__main__":
    main()

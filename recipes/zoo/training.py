"""Trains a zoo model on one CPU core and writes its weights and how they came about.

Muon moves the matrices of transformer blocks, AdamW everything else; both rates are flat after a
short warm-up and fall linearly to zero over the last part. A moving average of the weights is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from optimize.recipes.zoo.digits_data import DigitsSplit

Model = TypeVar("Model", bound=nn.Module)
Options = TypeVar("Options", bound="RunOptions")


@dataclass(frozen=True)
class RunOptions:
    """Options of any training run.

    Attributes:
        steps: optimizer steps.
        batch_size: images per step.
        matrix_rate: Muon's learning rate, for the matrices of the blocks.
        other_rate: AdamW's learning rate, for everything else.
        weight_decay: of both optimizers, per unit of learning rate.
        warmup_steps: steps over which the rates rise from 0.
        decay_share: share of the steps, at the end, over which they fall to 0; in (0, 1].
        average_decay: decay of the moving average of the weights, per step.
        check_every: steps between quality checks.
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
    average_decay: float = 0.996
    check_every: int = 400
    bfloat16: bool = True
    seed: int = 0


def make_optimizers(model: nn.Module, options: RunOptions) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer blocks, if any, and AdamW for the rest."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_block_matrix = "blocks" in name.split(".") and parameter.ndim == 2
        (matrices if is_block_matrix else others).append(parameter)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            others, lr=options.other_rate, weight_decay=options.weight_decay, betas=(0.9, 0.99)
        )
    ]
    if matrices:
        muon = torch.optim.Muon(matrices, lr=options.matrix_rate, weight_decay=options.weight_decay)
        optimizers.append(muon)
    return optimizers


def rate_share(step: int, options: RunOptions) -> float:
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


def stratified_uniform(count: int, generator: torch.Generator) -> torch.Tensor:
    """Numbers in [0, 1), [count], one from each of `count` equal cells, shuffled."""
    cell = torch.randperm(count, generator=generator)
    return (cell + torch.rand(count, generator=generator)) / count


def run_training(
    model: Model,
    loss_of_batch: Callable[[], torch.Tensor],
    check: Callable[[Model], dict[str, float]],
    options: RunOptions,
    weights: Path,
    optimizers: list[torch.optim.Optimizer] | None = None,
    largest_gradient: float = 1.0,
    dtype: torch.dtype | None = None,
) -> None:
    """Runs all steps; writes the averaged weights, and a JSON record beside them.

    Args:
        model: trained in place.
        loss_of_batch: draws the next batch and returns the loss of `model` on it, a scalar.
        check: figures of the averaged model for the record.
        weights: the safetensors file to write, at every check.
        optimizers: those of `make_optimizers` where not given.
        largest_gradient: norm that gradients are clipped to; infinity leaves them alone.
        dtype: of the weights in the file; theirs where not given.
    """
    average = torch.optim.swa_utils.AveragedModel(
        model, avg_fn=lambda slow, fast, _: slow.lerp(fast, 1 - options.average_decay)
    )
    averaged = average.module
    assert isinstance(averaged, type(model))
    optimizers = make_optimizers(model, options) if optimizers is None else optimizers
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step, options))
        for optimizer in optimizers
    ]
    cpu_start, recent_loss = time.process_time(), 0.0
    for step in range(1, options.steps + 1):
        loss = loss_of_batch()
        torch.autograd.backward(loss)
        if largest_gradient < math.inf:
            nn.utils.clip_grad_norm_(model.parameters(), largest_gradient)
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
            record = {
                "options": asdict(options),
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "step": step,
                "loss": recent_loss,
                "cpu_seconds": time.process_time() - cpu_start,
                "check": check(averaged),
            }
            _write(averaged, record, weights, dtype)
            print(f"step {step:5d}  {record['check']}", flush=True)


def options_of_command_line(
    defaults: Options, description: str, texts: Sequence[str] = ()
) -> tuple[Options, Path]:
    """The options a user gave, and the folder for the results; prepares torch for one core.

    Args:
        defaults: the options where the user says nothing.
        description: of the command.
        texts: names of options that are texts and that a user may give, too.
    """
    parser = argparse.ArgumentParser(description=description)
    for name in ("steps", "batch_size", "seed", "check_every"):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, default=getattr(defaults, name))
    for name in texts:
        parser.add_argument("--" + name, default=getattr(defaults, name))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    return replace(defaults, **arguments), out


def _write(
    model: nn.Module, record: dict[str, Any], weights: Path, dtype: torch.dtype | None
) -> None:
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if dtype is not None:
        state = {name: value.to(dtype) for name, value in state.items()}
    save_file(state, weights)
    record = {**record, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    weights.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")

"""Fits the energy head of the masked Shakespeare model on one CPU core, and measures it.

    python -m optimize.recipes.zoo.fit_masked_shakespeare_energy --out recipes/zoo

It learns from windows of the train works, and is measured on the held-out play: a loss below
2 log 2 = 1.386 says how much better it tells text from the model's draws than chance.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from optimize.capture.from_masked import capture_masked_model
from optimize.ir.decode import Sampling
from optimize.ir.program import Program
from optimize.ir.unmask import UnmaskLoop
from optimize.passes.energies.energy_head import EnergyHead, denoiser_fingerprint
from optimize.passes.energies.energy_head_file import load_energy_head, save_energy_head
from optimize.recipes.fit.energy_head import EnergyFitOptions, fit_energy_head, losses_by_share
from optimize.recipes.zoo.language_model_judge import windows_of
from optimize.recipes.zoo.masked_language_model import MaskedLanguageModel
from optimize.recipes.zoo.masked_shakespeare import (
    LENGTH,
    load_masked_shakespeare,
    new_masked_shakespeare,
)
from optimize.recipes.zoo.shakespeare_data import load_shakespeare_data
from optimize.recipes.zoo.train_shakespeare import windows

PATH = Path(__file__).with_name("masked_shakespeare_energy.safetensors")

OPTIONS = EnergyFitOptions(steps=400, batch_size=8, bfloat16=True)

HELD_OUT = 64
"""Held-out windows that the head is measured on."""


def program_of(model: MaskedLanguageModel) -> Program:
    """The program whose denoiser is judged; its draws are those of temperature 1."""
    loop = UnmaskLoop(
        mask_id=model.mask_id,
        length=LENGTH,
        remasking="random",
        sampling=Sampling(top_p=None),
        max_prompt=0,
    )
    return capture_masked_model(model, loop=loop)


def figures(head: EnergyHead, program: Program) -> dict[str, Any]:
    """The loss on held-out text, in all and by quarters of the masked share, few masks first."""
    texts = windows_of(load_shakespeare_data().held_out, HELD_OUT, LENGTH).long()
    losses = losses_by_share(head, program, texts, parts=4, draws=2)
    return {"loss": sum(losses) / len(losses), "loss_by_masked_share": losses}


def main() -> None:
    """Fits, measures what was written, and writes the record beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PATH.parent)
    parser.add_argument("--weights", type=Path, help="of a model that is not the zoo's own yet")
    parser.add_argument("--steps", type=int, default=OPTIONS.steps)
    parser.add_argument("--batch-size", type=int, default=OPTIONS.batch_size)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    options = replace(OPTIONS, steps=arguments.steps, batch_size=arguments.batch_size)
    if arguments.weights is None:
        model = load_masked_shakespeare()
    else:
        model = new_masked_shakespeare()
        model.load_state_dict(load_file(arguments.weights))
    program, start = program_of(model.eval()), time.process_time()
    generator = torch.Generator().manual_seed(options.seed)
    count = options.steps * options.batch_size
    texts = windows(load_shakespeare_data().train, count, LENGTH, generator).long()
    recent = 0.0

    def progress(step: int, loss: float, _: EnergyHead) -> None:
        nonlocal recent
        recent = loss if step == 1 else 0.95 * recent + 0.05 * loss
        if step % 20 == 0:
            seconds = time.process_time() - start
            print(f"step {step:5d}  loss {recent:.4f}  cpu {seconds:6.0f} s", flush=True)

    head = fit_energy_head(program, texts, options, progress)
    path = arguments.out / PATH.name
    save_energy_head(head, program, path)
    saved = load_energy_head(path, program)
    record = {
        "options": asdict(options),
        "parameters": sum(value.numel() for value in saved.tensors().values()),
        "denoiser": denoiser_fingerprint(program),
        "cpu_seconds": time.process_time() - start,
        "held_out": figures(saved, program),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record["held_out"], indent=2), flush=True)


if __name__ == "__main__":
    main()

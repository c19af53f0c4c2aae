"""Fits the Chimera draft of the Shakespeare model and measures it.

It learns from what the target says of its own text, greedy and drawn, behind prompts of the plays
it was trained on, and of the plays themselves. It is measured on greedy text behind held-out ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optimize.passes.drafts.chimera import Chimera, ChimeraConfig
from optimize.passes.drafts.chimera_file import load_chimera, save_chimera
from optimize.recipes.fit.chimera import (
    FitOptions,
    agreement_by_depth,
    fit_chimera,
    ranks_by_depth,
    tokens_per_call,
)
from optimize.recipes.fit.target_states import (
    TargetStates,
    generate_text,
    record_states,
    target_tables,
)
from optimize.recipes.zoo.shakespeare import held_out_prompts, load_shakespeare
from optimize.recipes.zoo.shakespeare_data import load_shakespeare_data

PATH = Path(__file__).with_name("shakespeare_chimera.safetensors")

CONFIG = ChimeraConfig(width=128, vocabulary=1024, heads=5, mlp_width=512, head_rank=64)
OPTIONS = FitOptions(steps=600, batch_size=8, bfloat16=True)

PROMPT = 32
"""Tokens of a prompt that text is generated behind."""


@dataclass(frozen=True)
class TextCounts:
    """Sequences of each kind that the draft learns from, and those it is measured on.

    Attributes:
        length: tokens of every sequence.
        corpus, greedy, drawn: of the plays, of the target's likeliest tokens, of drawn ones.
        held_out: greedy, behind prompts of the held-out play.
        temperature: of the drawn ones.
    """

    length: int = 160
    corpus: int = 400
    greedy: int = 700
    drawn: int = 300
    held_out: int = 48
    temperature: float = 0.7


def training_states(target: nn.Module, counts: TextCounts, seed: int = 0) -> TargetStates:
    """The target's states over the sequences of all three kinds."""
    works = load_shakespeare_data().train
    total = counts.corpus + counts.greedy + counts.drawn
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(works) - counts.length, (total,), generator=generator)
    text = works[starts[:, None] + torch.arange(counts.length)].long()
    corpus, greedy, drawn = torch.split(text, [counts.corpus, counts.greedy, counts.drawn])
    fresh = counts.length - PROMPT
    made = [corpus]
    if len(greedy):
        made.append(generate_text(target, greedy[:, :PROMPT], fresh))
    if len(drawn):
        prompts = drawn[:, :PROMPT]
        made.append(generate_text(target, prompts, fresh, counts.temperature, seed=seed))
    return record_states(target, torch.cat(made))


def held_out_states(target: nn.Module, counts: TextCounts) -> TargetStates:
    """The target's states over its greedy text behind held-out prompts."""
    prompts = held_out_prompts(counts.held_out, PROMPT)
    return record_states(target, generate_text(target, prompts, counts.length - PROMPT))


def figures(chimera: Chimera, held_out: TargetStates) -> dict[str, Any]:
    """What decides the speed: how far chains and Chimera's tree get on greedy text."""
    ranks = ranks_by_depth(chimera, held_out, first=PROMPT - 1)
    text = held_out.tokens[:, PROMPT:].tolist()
    return {
        "agreement_by_depth": agreement_by_depth(chimera, held_out, first=PROMPT - 1),
        "chain_tokens_per_call": tokens_per_call(
            ranks, [(0,) * depth for depth in range(1, chimera.config.heads + 1)]
        ),
        "top_rank_recall": {
            count: (ranks[:, 0] < count).double().mean().item() for count in (1, 2, 4)
        },
        "rows": len(ranks),
        # Text that goes in circles is easy to foretell: this says how much of it does.
        "distinct_tokens": sum(len(set(row)) for row in text) / len(text),
    }


def main() -> None:
    """Fits, measures what was written, and writes the record beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PATH)
    parser.add_argument("--steps", type=int, default=OPTIONS.steps)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts, start = TextCounts(), time.process_time()
    options = FitOptions(**{**asdict(OPTIONS), "steps": arguments.steps})
    target = load_shakespeare()
    states = training_states(target, counts)
    recorded = time.process_time() - start
    print(f"{states.tokens.numel()} tokens recorded in {recorded:.0f} cpu s", flush=True)

    def progress(step: int, loss: float, _: Chimera) -> None:
        if step % 50 == 0:
            seconds = time.process_time() - start
            print(f"step {step:5d}  loss {loss:.4f}  cpu {seconds:6.0f} s", flush=True)

    chimera = fit_chimera(target, states, CONFIG, options, progress)
    save_chimera(chimera, arguments.out)
    tables = target_tables(target)
    saved = load_chimera(arguments.out, tables.embedding.weight, tables.last.weight)
    record = {
        "config": asdict(CONFIG),
        "options": asdict(options),
        "text": asdict(counts),
        "parameters": sum(parameter.numel() for parameter in saved.parameters()),
        "cpu_seconds": time.process_time() - start,
        "held_out": figures(saved, held_out_states(target, counts)),
        "sha256": hashlib.sha256(arguments.out.read_bytes()).hexdigest(),
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record["held_out"], indent=2), flush=True)


if __name__ == "__main__":
    main()

"""Samplers of zoo:masked-shakespeare, 256 tokens without a prompt: quality and time."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from masked_diffusion_texts import Quality, quality

import optimize.api  # noqa: F401  names of the zoo become sources of energies
from optimize.ir.decode import Sampling
from optimize.ir.program import Program
from optimize.ir.unmask import UnmaskLoop
from optimize.measure.timing import interleaved_seconds
from optimize.passes.energy_resample import EnergyResample
from optimize.passes.first_hitting import FirstHitting
from optimize.passes.pass_base import Pass
from optimize.recipes.zoo.masked_shakespeare import LENGTH, masked_shakespeare_program
from optimize.recipes.zoo.shakespeare_data import END, VOCABULARY
from optimize.runtime import Session, load

THREADS = 2
BATCH = 8
STEPS = 1000
"""Time steps of the baseline, as masked diffusion is sampled in the literature."""

BASELINE_TEXTS, TEXTS = 16, 48
GROUPED = (256, 128, 64, 32, 16)
FEW_STEPS = (128, 64)
ENERGIES = ((64, 4), (32, 4), (64, 2))
"""Calls and candidates; the judge of candidates is zoo:shakespeare-draft, that of texts is not."""


def stepwise(steps: int) -> Program:
    """The reverse process in so many time steps: what first hitting is compared with."""
    loop = UnmaskLoop(
        mask_id=VOCABULARY,
        length=LENGTH,
        steps=steps,
        remasking="ancestral",
        sampling=Sampling(1.0, top_p=None),
        max_prompt=0,
    )
    return masked_shakespeare_program(loop)


def rewritten(program: Program, *passes: Pass) -> Program:
    """The program after passes.

    Raises:
        RuntimeError: one declines.
    """
    for item in passes:
        reason = item.declines(program)
        if reason is not None:
            raise RuntimeError(f"{item.name}: {reason}")
        program = item.rewrite(program).program
    return program


def samplers() -> dict[str, Any]:
    """Texts of every sampler, judged, and the seconds they took."""
    captured = stepwise(STEPS)
    sets = {"steps_1000": _sampled(captured, BASELINE_TEXTS)}
    for steps in FEW_STEPS:
        sets[f"steps_{steps}"] = _sampled(stepwise(steps), TEXTS)
    for calls in GROUPED:
        sets[f"first_hitting_{calls}"] = _sampled(
            rewritten(captured, FirstHitting(calls=calls)), TEXTS
        )
    for calls, count in ENERGIES:
        energy = EnergyResample("zoo:shakespeare-draft", candidates=count, start_token=END)
        program = rewritten(captured, FirstHitting(calls=calls), energy)
        sets[f"energy_{calls}_{count}"] = _sampled(program, TEXTS)
    baseline = sets["steps_1000"]
    equal = [f"first_hitting_{calls}" for calls in GROUPED]
    equal = [name for name in equal if sets[name][0].is_no_worse(baseline[0])]
    fastest = min(equal, key=lambda name: sets[name][1])
    few = [
        f"steps_{steps}"
        for steps in FEW_STEPS
        if sets[f"steps_{steps}"][0].is_no_worse(baseline[0])
    ]
    least = min(sets[name][1] for name in [*few, "steps_1000"])
    energies = {name: _time_ratio(sets, name) for name in sets if name.startswith("energy_")}
    best = max(energies, key=lambda name: energies[name]["time_ratio"])
    return {
        "fhs_speedup": baseline[1] / sets[fastest][1],
        "fhs_fastest_at_equal_quality": fastest,
        "fhs_exact_speedup": baseline[1] / sets["first_hitting_256"][1],
        "fhs_against_fewest_equal_steps": least / sets[fastest][1],
        "edlm_time_ratio": energies[best]["time_ratio"],
        "edlm_best": best,
        "edlm_time_ratios": energies,
        "samplers": {
            name: {**found.data(), "seconds_per_text": seconds}
            for name, (found, seconds) in sets.items()
        },
    }


def calls() -> dict[str, Any]:
    """The cost of one call of the samplers, and of its parts, in ONNX Runtime and in PyTorch."""
    torch.set_num_threads(1)
    steps, grouped = 64, 64
    programs = {
        "steps": stepwise(steps),
        "first_hitting": rewritten(stepwise(STEPS), FirstHitting(calls=grouped)),
        "all_rows": rewritten(stepwise(STEPS), FirstHitting(calls=grouped, chosen_rows=False)),
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        opened: dict[str, Session] = {}
        for name, program in programs.items():
            opened[name] = stack.enter_context(load(program.export(folder / name), threads=1))
        onnx = _in_turns({name: _asking(session) for name, session in opened.items()}, repeats=2)
    eager = _in_turns(
        {name: _asking(program) for name, program in programs.items() if name != "all_rows"},
        repeats=1,
    )
    ratio, torch_ratio = (
        onnx["steps"] / onnx["first_hitting"],
        eager["steps"] / eager["first_hitting"],
    )
    gumbel = _gumbel_seconds()
    return {
        "call_ms": {name: 1e3 * seconds / steps for name, seconds in onnx.items()},
        "public_categorical_ms": 1e3 * gumbel,
        "call_speedup": ratio,
        "call_speedup_pytorch": torch_ratio,
        "call_speedup_with_public_categorical": (onnx["steps"] / steps + gumbel)
        / (onnx["first_hitting"] / grouped),
        "projection_share": 1 - onnx["first_hitting"] / onnx["all_rows"],
        "onnx_against_pytorch": ratio / torch_ratio,
    }


def _sampled(program: Program, count: int) -> tuple[Quality, float]:
    """Quality of texts, and seconds for one."""
    with tempfile.TemporaryDirectory() as folder:
        path = program.export(Path(folder) / "bundle")
        with load(path, threads=THREADS) as session:
            session(batch=1, seed=0)
            start, texts = time.perf_counter(), []
            for seed in range(count // BATCH):
                texts.append(torch.from_numpy(session(batch=BATCH, seed=seed)["tokens"]))
            seconds = (time.perf_counter() - start) / count
    return quality(torch.cat(texts)), seconds


def _time_ratio(sets: Mapping[str, tuple[Quality, float]], name: str) -> dict[str, Any]:
    """Time of first hitting for the perplexity that a sampler reaches, over the sampler's time.

    Between two numbers of calls the time is interpolated; a perplexity that no number of calls
    reaches counts as that of the exact process, which is then a lower bound.
    """
    wanted, seconds = sets[name][0].nats.value, sets[name][1]
    points = sorted(
        (sets[f"first_hitting_{calls}"][1], sets[f"first_hitting_{calls}"][0].nats.value)
        for calls in GROUPED
    )
    reached = [(spent, nats) for spent, nats in points if nats <= wanted]
    if not reached:
        return {"time_ratio": points[-1][0] / seconds, "reached_by_first_hitting": False}
    spent, nats = reached[0]
    before = [point for point in points if point[0] < spent]
    if before and before[-1][1] > nats:
        share = (before[-1][1] - wanted) / (before[-1][1] - nats)
        logs = math.log(before[-1][0]), math.log(spent)
        spent = math.exp(logs[0] + share * (logs[1] - logs[0]))
    return {"time_ratio": spent / seconds, "reached_by_first_hitting": True}


def _asking(model: Any) -> Callable[[], Any]:
    return lambda: model(batch=BATCH, seed=1)


def _in_turns(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each way for one text."""
    found = interleaved_seconds(ways, repeats, warmup=0)
    return {name: statistics.median(seconds) / BATCH for name, seconds in found.items()}


def _gumbel_seconds() -> float:
    """A token for every position as public code draws it: a float64 Gumbel for every logit.

    Returns:
        Seconds for one text.
    """
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(generator.standard_normal((BATCH, LENGTH, VOCABULARY)))
    found = []
    for _ in range(5):
        start = time.perf_counter()
        uniform = torch.rand(logits.shape, dtype=torch.float64)
        (logits - torch.log(-torch.log(uniform))).argmax(-1)
        found.append((time.perf_counter() - start) / BATCH)
    return statistics.median(found)

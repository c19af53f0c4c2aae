"""`tile_attention` end to end: a Wan-shaped model against Amdahl, and the zoo's moving digits.

Everything is timed interleaved, on two threads; ratios are medians over rounds.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts import Figures

from optimize.ir.attention_sites import Site, attention_sites
from optimize.ir.axis_rules import infer_axes
from optimize.ir.builder import Builder, fake_mode_of
from optimize.ir.frame_axis import FrameGrid, frame_grid
from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.ir.replay import Replay
from optimize.ir.token_axis import SDPA, token_axis
from optimize.kernels.tile_attention.pattern import spread_references
from optimize.measure.amdahl import predicted_speedup
from optimize.measure.timing import interleaved_seconds
from optimize.passes.calibration import requests
from optimize.passes.fuse_solver import FuseSolver
from optimize.passes.pipeline import run_passes
from optimize.passes.tile_attention import TileAttention
from optimize.passes.tile_node import apply, tiled
from optimize.passes.trajectory import denoiser_inputs
from optimize.runtime.session import load

THREADS = 2
BASELINE_STEPS = 50
BUDGETS = (0.005, 0.01, 0.02, 0.05)
SAMPLES = 200
TIMED_CLIPS = 10
CALIBRATION_CLIPS = 4
RECIPE = "video-fast"


def wan(rounds: int = 9) -> Figures:
    """Measured speed of one denoiser call over what Amdahl's law predicts from attention alone."""
    from optimize.capture.from_denoiser import capture
    from optimize.recipes.zoo.wan_shaped import wan_shaped

    torch.set_num_threads(THREADS)
    made = wan_shaped(frames=8, height=32, width=64, layers=3, heads=4)  # 8 x 512 tokens
    program = capture(made.module, made.inputs, loop=made.loop(1))
    request = requests(program, None, made.inputs)[0]
    return amdahl("wan", program, request, (1, 2, 4), rounds)


def digits_amdahl(rounds: int = 11) -> Figures:
    """The same of the moving digits, ten clips at a time."""
    program = _digits(1)
    labels = np.arange(TIMED_CLIPS) % 10
    request = requests(program, None, {"class_labels": torch.from_numpy(labels)})[0]
    return amdahl("moving_digits", program, request, (1, 2), rounds)


def amdahl(
    name: str, program: Program, request: Mapping[str, Any], counts: Sequence[int], rounds: int
) -> Figures:
    """Predicted and measured speed-up in PyTorch and in ONNX Runtime, per number of references."""
    table: dict[str, dict[str, float]] = {}
    for count in counts:
        after = run_passes(program, [TileAttention(references=count)], verify=False)
        for engine, measure in (("torch", _in_torch), ("onnx", _in_onnx)):
            table[f"{engine}_references_{count}"] = measure(program, after, request, count, rounds)
    errors = [abs(row["measured"] / row["predicted"] - 1) for row in table.values()]
    return {f"amdahl_error_{name}": max(errors), f"amdahl_{name}": table}


Run = Callable[[], object]


def _row(seconds: Mapping[str, list[float]], sites: int) -> dict[str, float]:
    """Share, prediction and measurement from the seconds of calls and of single sites."""
    dense, tiles = seconds["dense"], seconds["tiled"]
    measured = statistics.median(a / b for a, b in zip(dense, tiles, strict=True))
    site_dense, site_tiled = seconds["site dense"], seconds["site tiled"]
    kernel = statistics.median(a / b for a, b in zip(site_dense, site_tiled, strict=True))
    share = statistics.median(sites * a / b for a, b in zip(site_dense, dense, strict=True))
    predicted = predicted_speedup(min(1.0, share), kernel)
    return {
        "attention_share": share,
        "kernel_speedup": kernel,
        "predicted": predicted,
        "measured": measured,
    }


def _in_torch(
    before: Program, after: Program, request: Mapping[str, Any], count: int, rounds: int
) -> dict[str, float]:
    graph = before.graphs["denoiser"]
    sites, grid = _sites(graph)
    inputs, run = _at_first_site(before, request, sites)
    args, kwargs = run.arguments(sites[0].node)
    references = spread_references(grid.frames, count)
    attend = tiled(apply, sites[0], grid, references, torch.device("cpu"))
    runs: dict[str, Run] = {
        "dense": lambda: graph.run(before.weights, inputs),
        "tiled": lambda: after.graphs["denoiser"].run(after.weights, inputs),
        "site dense": lambda: SDPA(*args, **kwargs),
        "site tiled": lambda: attend(*args, **kwargs),
    }
    return _row(interleaved_seconds(runs, rounds), len(sites))


def _in_onnx(
    before: Program, after: Program, request: Mapping[str, Any], count: int, rounds: int
) -> dict[str, float]:
    graph = before.graphs["denoiser"]
    sites, grid = _sites(graph)
    _, run = _at_first_site(before, request, sites)
    rows = [run.value(item).contiguous().numpy() for item in sites[0].inputs]
    given = {name: item for name, item in request.items() if name != "seed"}
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for name, program in (("dense", before), ("tiled", after)):
            fused = run_passes(program, [FuseSolver()], verify=False)
            sessions[name] = load(fused.export(Path(folder) / name), threads=THREADS)
        alone = {
            "site dense": _site_session(graph, sites[0], grid, grid.frames),
            "site tiled": _site_session(graph, sites[0], grid, count),
        }
        feed = dict(zip(("query", "key", "value"), rows, strict=True))
        runs: dict[str, Run] = {
            **{name: _asking(session, given) for name, session in sessions.items()},
            **{name: _running(session, feed) for name, session in alone.items()},
        }
        seconds = interleaved_seconds(runs, rounds)
        for session in sessions.values():
            session.close()
    return _row(seconds, len(sites))


def _asking(session: Any, given: Mapping[str, Any]) -> Run:
    return lambda: session(seed=0, **given)


def _running(session: Any, feed: Mapping[str, Any]) -> Run:
    return lambda: session.run(None, feed)


def _sites(graph: Graph) -> tuple[tuple[Site, ...], FrameGrid]:
    axes = infer_axes(graph)
    tokens = token_axis(graph, axes)
    sites, _ = attention_sites(graph, axes, tokens)
    return sites, frame_grid(graph, axes, tokens)


def _at_first_site(
    program: Program, request: Mapping[str, Any], sites: Sequence[Site]
) -> tuple[Mapping[str, torch.Tensor], Replay]:
    """The inputs of a call half-way through a run, and the call halted at its first site."""
    (inputs,) = denoiser_inputs(program, request, 1)
    run = Replay(program.graphs["denoiser"], program.weights, inputs)
    run.advance(sites[0].node)
    return inputs, run


def _site_session(graph: Graph, site: Site, grid: FrameGrid, count: int) -> Any:
    """An ONNX Runtime session of one site's attention by itself."""
    import onnxruntime

    from optimize.export.to_onnx import graph_to_onnx

    builder = Builder(fake_mode_of(graph))
    names = ("query", "key", "value")
    rows = [
        builder.input(name, item.meta["val"]) for name, item in zip(names, site.inputs, strict=True)
    ]
    references = spread_references(grid.frames, count)
    attend = tiled(builder.call, site, grid, references, torch.device("cpu"))
    result = attend(*rows) if count < grid.frames else builder.call(SDPA, *rows)
    alone = builder.finish({"attended": result}, graph.dimensions)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = graph_to_onnx(alone, "site", {}).model.SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def moving_digits(rounds: int = 5) -> Figures:
    """Masks at three budgets, and masks with few steps against fifty dense eager steps."""
    from optimize.recipes.recipe import Recipe
    from optimize.recipes.zoo.digits_data import load_digits_data
    from optimize.recipes.zoo.digits_sampling import balanced_labels
    from optimize.recipes.zoo.moving_digits import load_moving_digits
    from optimize.recipes.zoo.moving_digits_judge import MovingDigitsJudge
    from optimize.recipes.zoo.moving_digits_sampling import clip_noise, sample_clips

    torch.set_num_threads(THREADS)
    model, judge = load_moving_digits(), MovingDigitsJudge.fit(load_digits_data())
    noise, labels = clip_noise(SAMPLES, seed=1), balanced_labels(SAMPLES)
    program = _digits(BASELINE_STEPS)
    solver = next(
        entry.item for entry in Recipe.load(RECIPE).passes if entry.item.name == "fuse_solver"
    )
    samples = {"baseline": sample_clips(model, noise, labels, BASELINE_STEPS)}
    with tempfile.TemporaryDirectory() as folder:
        few_steps = run_passes(program, [solver], verify=False)
        sessions = {"dense": _session(few_steps, folder, "dense")}
        masks: dict[str, Any] = {}
        for budget in BUDGETS:
            passes = [TileAttention(budget=budget), solver]
            # The search itself compares with the dense model; the rest is the judge's.
            after = run_passes(program, passes, verify=False, calibration=_calibration(program))
            tiles = after.history[0].details["tiles"]
            masks[str(budget)] = {
                "references": [len(layer["references"]) for layer in tiles["layers"]],
                "errors_alone": [layer["error"] for layer in tiles["layers"]],
                "joint_error": tiles["joint_error"],
                "predicted_torch_speedup": tiles["predicted_speedup"],
            }
            sessions[str(budget)] = _session(after, folder, str(budget))
        for name, session in sessions.items():
            samples[name] = _sampled(session, noise, labels)
        few, of_few = noise[:TIMED_CLIPS], labels[:TIMED_CLIPS]
        runs: dict[str, Run] = {
            "baseline": lambda: sample_clips(model, few, of_few, BASELINE_STEPS)
        }
        for name, session in sessions.items():
            runs[name] = _sampling(session, few, of_few)
        seconds = interleaved_seconds(runs, rounds)
        for session in sessions.values():
            session.close()
    rows = {}
    for name, clips in samples.items():
        row = {
            "judge": judge.accuracy(clips, labels),
            "frechet": judge.frechet_interval(clips).value,
            "speedup": _ratio(seconds["baseline"], seconds[name]),
        }
        if name in masks:
            dense = samples["dense"]
            row["paired_error"] = float((clips - dense).square().sum() / dense.square().sum())
            row["mask_speedup"] = _ratio(seconds["dense"], seconds[name])
        rows[name] = row
    ours = rows[_recipe_budget()]
    return {
        "end_to_end_speedup": ours["speedup"],
        "judge_drop": rows["baseline"]["judge"] - ours["judge"],
        "moving_digits": {"rows": rows, "masks": masks, "calls": solver.steps},
        "moving_digits_real_clips_judge": judge.held_out_accuracy(),
    }


def _recipe_budget() -> str:
    from optimize.recipes.recipe import Recipe

    items = [entry.item for entry in Recipe.load(RECIPE).passes]
    return str(next(item.budget for item in items if isinstance(item, TileAttention)))


def _digits(steps: int) -> Program:
    from dataclasses import replace

    from optimize.capture.from_denoiser import capture
    from optimize.commands.models import load_model

    torch.set_num_threads(THREADS)
    loaded = load_model("zoo:moving-digits")
    assert loaded.loop is not None
    return capture(loaded.model, loaded.example_inputs, loop=replace(loaded.loop, steps=steps))


def _calibration(program: Program) -> list[Mapping[str, Any]]:
    return requests(program, None, {"class_labels": torch.arange(CALIBRATION_CLIPS)})


def _session(program: Program, folder: str, name: str) -> Any:
    return load(program.export(Path(folder) / name), threads=THREADS)


def _sampling(session: Any, noise: torch.Tensor, labels: torch.Tensor) -> Run:
    return lambda: session(latent=noise.numpy(), class_labels=labels.numpy())


def _sampled(session: Any, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    parts = [
        session(latent=some.numpy(), class_labels=of_some.numpy())["latent"]
        for some, of_some in zip(noise.split(40), labels.split(40), strict=True)
    ]
    return torch.from_numpy(np.concatenate(parts))


def _ratio(baseline: Sequence[float], ours: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(baseline, ours, strict=True))

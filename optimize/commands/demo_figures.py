"""The figures of the demo: time and quality of the bundle, its baseline, its controls, its parts.

Every row samples the same noise and labels. The controls are what an honest reader asks for: the
baseline's own solver with as few denoiser calls, and with as little time on the same engine.
"""

import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from optimize.commands.progress import StageBar
from optimize.ir.program import Program
from optimize.ir.report import Curve, Report, Role, Row
from optimize.measure.quality import trajectory_distance
from optimize.measure.timing import interleaved_seconds
from optimize.passes.fuse_solver import FuseSolver
from optimize.passes.pipeline import run_passes
from optimize.recipes.zoo.digits_data import HELD_OUT_COUNT, flatten_images, load_digits_data
from optimize.recipes.zoo.digits_judge import DigitsJudge
from optimize.recipes.zoo.digits_sampling import (
    balanced_labels,
    draw_noise,
    sample_digits,
    sigma_schedule,
)
from optimize.report.html import Samples
from optimize.report.images import Picture, grid, to_picture
from optimize.runtime.session import Session, load

FINE_STEPS = 200
FINE_SAMPLES = 60
CURVE_STEPS = (4, 8, 16, 32)
TIMED_BATCH = 10
SHOWN = 20
METRIC = "distance to the fine solution"

Sampler = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(noise [B, 1, 32, 32], labels [B]) → images of the same shape."""


@dataclass(frozen=True)
class Way:
    """One way to get the images."""

    name: str
    role: Role
    denoiser_calls: int
    sample: Sampler


@dataclass(frozen=True)
class DemoFigures:
    """What the demo leaves: the report, its pictures, and the sheet of samples."""

    report: Report
    samples: tuple[Samples, ...]
    sheet: Picture


def measure_demo(
    model: nn.Module,
    baseline: Program,
    program: Program,
    bundle: Path,
    quick: bool,
    progress: StageBar,
) -> DemoFigures:
    """Measures everything the demo reports.

    Args:
        model: the zoo's denoiser, run as it is for the baseline.
        baseline: the captured program, for the controls.
        program: the optimised one.
        bundle: the optimised one, exported.
        quick: few samples: rough figures.
        progress: told what is running.
    """
    count = 2 * FINE_SAMPLES if quick else HELD_OUT_COUNT
    repeats = 3 if quick else 5
    assert baseline.description is not None and program.description is not None
    steps, calls = baseline.description.steps, program.description.steps
    labels, noise = balanced_labels(count), draw_noise(count, seed=1)
    few = slice(0, FINE_SAMPLES)
    progress.wait("export the controls")
    with tempfile.TemporaryDirectory() as folder, load(bundle) as ours:
        plain = {
            n: _exported(fused_with_steps(baseline, n), Path(folder) / f"{n}") for n in (calls,)
        }
        fitting = _fitting_steps(ours, plain[calls], calls)
        for n in {fitting, FINE_STEPS, *CURVE_STEPS} - {calls}:
            plain[n] = _exported(fused_with_steps(baseline, n), Path(folder) / f"{n}")
        euler = {n: _from_session(session) for n, session in plain.items()}
        alone = _from_program(solver_alone(baseline, program))
        ways = [
            Way(f"Euler, {steps} steps, eager PyTorch", "baseline", steps, _eager(model, steps)),
            Way("this bundle, ONNX Runtime", "ours", calls, _from_session(ours)),
            Way(f"as few calls: Euler, {calls} steps, ONNX", "control", calls, euler[calls]),
            Way(
                f"as little time: Euler, {fitting} steps, ONNX", "control", fitting, euler[fitting]
            ),
            Way("its solver alone, PyTorch", "part", calls, alone),
            Way("its solver and regions, PyTorch", "part", calls, _from_program(program)),
        ]
        seconds = _seconds(ways, repeats, progress)
        images = {}
        for index, way in enumerate(ways):
            progress(f"sample: {way.name}", index, len(ways))
            shown = few if way.role == "part" else slice(None)
            images[way.name] = _in_batches(way.sample, noise[shown], labels[shown])
        progress.wait("fine solution")
        fine = _in_batches(euler[FINE_STEPS], noise[few], labels[few])
        progress.wait("calls versus quality")
        points = [
            (n, _distance(_in_batches(euler[n], noise[few], labels[few]), fine))
            for n in CURVE_STEPS
        ]
        for session in plain.values():
            session.close()
    progress.wait("judge")
    judge = DigitsJudge.fit(load_digits_data())
    rows = []
    for way in ways:
        quality = {METRIC: _distance(images[way.name][few], fine)}
        if way.role != "part":
            quality["Fréchet distance"] = judge.frechet(images[way.name])
            quality["judge accuracy"] = judge.accuracy(images[way.name], labels)
        middle = statistics.median(seconds[way.name]) / TIMED_BATCH
        rows.append(Row(way.name, way.role, way.denoiser_calls, middle, quality))
    report = replace(
        program.report,
        rows=tuple(rows),
        curves=(Curve("Euler", tuple(points)),),
        curve_metric=METRIC,
        environment=environment(count, repeats),
    )
    return _with_pictures(report, ways, images)


def fused_with_steps(program: Program, steps: int) -> Program:
    """The captured program with another number of steps of its own solver."""
    return run_passes(program, [FuseSolver(steps=steps)], verify=False)


def solver_alone(baseline: Program, program: Program) -> Program:
    """The baseline with the optimised program's solver, and no other pass."""
    record = next(item for item in program.history if item.name == "fuse_solver")
    return run_passes(baseline, [FuseSolver(**record.options)], verify=False)


def environment(samples: int, repeats: int) -> dict[str, str]:
    """What the figures were measured on."""
    import onnxruntime

    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "threads": str(torch.get_num_threads()),
        "time": f"median of {repeats} interleaved rounds of {TIMED_BATCH} images, one warm-up",
        "quality": f"{samples} samples, same noise and labels in every row",
    }


def _eager(model: nn.Module, steps: int) -> Sampler:
    sigmas = sigma_schedule(steps)
    return lambda noise, labels: sample_digits(model, noise, labels, sigmas)  # type: ignore[arg-type]


def _from_session(session: Session) -> Sampler:
    def sample(noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        result: NDArray[Any] = session(latent=noise.numpy(), class_labels=labels.numpy())["latent"]
        return torch.from_numpy(result)

    return sample


def _from_program(program: Program) -> Sampler:
    return lambda noise, labels: program(latent=noise, class_labels=labels)["latent"]


def _exported(program: Program, path: Path) -> Session:
    program.export(path)
    return load(path)


def _fitting_steps(ours: Session, plain: Session, calls: int) -> int:
    """How many plain steps take as long as the optimised program, at least 1."""
    noise, labels = draw_noise(TIMED_BATCH, seed=2), balanced_labels(TIMED_BATCH)
    seconds = interleaved_seconds(
        {
            "ours": lambda: _from_session(ours)(noise, labels),
            "plain": lambda: _from_session(plain)(noise, labels),
        },
        repeats=5,
    )
    ratio = statistics.median(seconds["ours"]) / statistics.median(seconds["plain"])
    return max(1, round(ratio * calls))


def _seconds(ways: Sequence[Way], repeats: int, progress: StageBar) -> dict[str, list[float]]:
    noise, labels = draw_noise(TIMED_BATCH, seed=3), balanced_labels(TIMED_BATCH)

    def run(way: Way) -> Callable[[], object]:
        return lambda: way.sample(noise, labels)

    return interleaved_seconds(
        {way.name: run(way) for way in ways},
        repeats,
        progress=lambda done, total: progress("time, in turns", done, total),
    )


def _in_batches(sample: Sampler, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    size = FINE_SAMPLES
    parts = [
        sample(noise[start : start + size], labels[start : start + size])
        for start in range(0, len(noise), size)
    ]
    return torch.cat(parts)


def _distance(images: torch.Tensor, fine: torch.Tensor) -> float:
    return trajectory_distance(flatten_images(images), flatten_images(fine)).value


def _with_pictures(
    report: Report, ways: Sequence[Way], images: dict[str, torch.Tensor]
) -> DemoFigures:
    """Before and after, one above the other: ink is dark on light paper."""

    def pictures(way: Way) -> list[Picture]:
        shown = images[way.name][:SHOWN, 0].numpy()
        return [to_picture(-image, -1.0, 1.0) for image in shown]

    shown = [way for way in ways if way.role != "part"]
    samples = tuple(Samples(way.name, grid(pictures(way), columns=10)) for way in shown)
    before, after = (way for way in ways if way.role in ("baseline", "ours"))
    rows = [picture for way in (before, after) for picture in pictures(way)[:10]]
    return DemoFigures(report, samples, grid(rows, columns=10))

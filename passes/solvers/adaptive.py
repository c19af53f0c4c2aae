"""DPM-Solver-12 and -23: adaptive steps, each tried with two orders that share their evaluations.

    lower, higher = two solutions of the step h
    E = max over the batch of RMS((higher - lower) / max(atol, rtol max(|lower|, |previous lower|)))
    E <= 1: accept the higher one;   h ← min(0.9 h E^(-1 / order), what remains)

How many tries it takes depends on the data, so the loop runs until its graphs say that it is done.
Everything, the step control included, is nodes of the graphs: an engine call per denoiser call.
Source: Lu et al. (2022), DPM-Solver, algorithm 3 and appendix C.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from optimize.capture.from_module import trace
from optimize.ir.denoise import Prediction
from optimize.ir.graph import Graph
from optimize.ir.noise_path import NoisePath, half_log_snr
from optimize.ir.program import Program, denoising_repeat, with_repeat
from optimize.ir.solver_graph import fused_graph, kept_slots
from optimize.ir.solver_step import captured_step
from optimize.runtime.loop import Binding, Call, Destination, Slot

FIRST_WIDTH = 0.05
"""The first step tried, in half log-SNR."""

SAFETY = 0.9
FINISHED = 1e-5
"""What may remain of the half log-SNR at the end."""

MOST_TRIES = 1000
"""Where a run ends although it is not done, as `denoiser_calls` then shows: order times this."""

POINTS = 16385
"""Of the tables of alpha, sigma and time, linear between: errors below 1e-7."""


class Curve(nn.Module):
    """alpha, sigma and the network's time at a half log-SNR, from a table."""

    def __init__(self, path: NoisePath, dtype: torch.dtype) -> None:
        super().__init__()
        low, high = path.ends
        alpha, sigma = path.split(np.array([high, low]))
        self.start, self.end = (float(item) for item in half_log_snr(alpha, sigma))
        grid = np.linspace(self.start, self.end, POINTS)
        level = path.level_at(grid)
        table = np.stack([*path.split(level), path.time(level)])
        self.register_buffer("table", torch.from_numpy(table).to(dtype))

    def forward(self, half: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        place = (half - self.start) * ((POINTS - 1) / (self.end - self.start))
        place = place.clamp(0, POINTS - 1)
        below = place.floor().clamp(max=POINTS - 2)
        table: Any = self.table
        index = below.to(torch.int64).reshape(1)
        first, second = table.index_select(1, index), table.index_select(1, index + 1)
        alpha, sigma, time = first + (place - below) * (second - first)
        return alpha.reshape(()), sigma.reshape(()), time.reshape(())


class Stage(nn.Module):
    """What the stages of a step share.

    Args:
        curve: of the model's path.
        prediction: what the network returns.
        inner: where the points inside the step lie, as parts of it.
    """

    def __init__(self, curve: Curve, prediction: Prediction, inner: tuple[float, ...]) -> None:
        super().__init__()
        self.curve = curve
        self.prediction = prediction
        self.inner = inner

    def at(self, half: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """alpha, sigma and the network's time."""
        found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self.curve(half)
        return found

    def noise(self, latent: torch.Tensor, output: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
        """The noise estimate of a network output."""
        alpha, sigma, _ = self.at(half)
        if self.prediction == "epsilon":
            return output
        if self.prediction == "denoised":
            return (latent - alpha * output) / sigma
        if self.prediction == "v":
            return alpha * output + sigma * latent
        return latent + alpha * output

    def first_order(
        self, origin: torch.Tensor, noise: torch.Tensor, half: torch.Tensor, width: torch.Tensor
    ) -> torch.Tensor:
        """DDIM's step of some width."""
        alpha, _, _ = self.at(half)
        alpha_end, sigma_end, _ = self.at(half + width)
        return alpha_end / alpha * origin - sigma_end * torch.expm1(width) * noise


class FirstStage(Stage):
    """From the start of a step to the first point inside it."""

    def forward(
        self,
        latent: torch.Tensor,
        prediction: torch.Tensor,
        half: torch.Tensor,
        width: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        noise = self.noise(latent, prediction, half)
        part = self.inner[0] * width
        moved = self.first_order(latent, noise, half, part)
        return noise, moved, self.at(half + part)[2]


class MiddleStage(Stage):
    """From the first point inside a step of order 3 to the second."""

    def forward(
        self,
        latent: torch.Tensor,
        prediction: torch.Tensor,
        origin: torch.Tensor,
        noise_1: torch.Tensor,
        half: torch.Tensor,
        width: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        first, second = self.inner
        part = second * width
        noise = self.noise(latent, prediction, half + first * width)
        moved = self.first_order(origin, noise_1, half, part)
        _, sigma_end, time = self.at(half + part)
        bend = torch.expm1(part) / part - 1
        return noise, moved - second / first * sigma_end * bend * (noise - noise_1), time


class LastStage(Stage):
    """The two solutions, the decision between them, and the next step's width."""

    def __init__(
        self,
        curve: Curve,
        prediction: Prediction,
        inner: tuple[float, ...],
        tolerances: tuple[float, float],
    ) -> None:
        super().__init__(curve, prediction, inner)
        self.absolute, self.relative = tolerances

    def forward(
        self,
        latent: torch.Tensor,
        prediction: torch.Tensor,
        origin: torch.Tensor,
        previous: torch.Tensor,
        noise_1: torch.Tensor,
        noise_2: torch.Tensor,
        half: torch.Tensor,
        width: torch.Tensor,
        calls: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        noise = self.noise(latent, prediction, half + self.inner[-1] * width)
        sigma_end = self.at(half + width)[1]
        euler = self.first_order(origin, noise_1, half, width)
        if len(self.inner) == 1:
            lower, order = euler, 2
            change = (noise - noise_1) / (2 * self.inner[0])
            higher = euler - sigma_end * torch.expm1(width) * change
        else:
            order = 3
            change = (noise_2 - noise_1) / (2 * self.inner[0])
            lower = euler - sigma_end * torch.expm1(width) * change
            bend = torch.expm1(width) / width - 1
            higher = euler - sigma_end * bend / self.inner[1] * (noise - noise_1)
        largest = torch.maximum(lower.abs(), previous.abs())
        scaled = (higher - lower) / (self.relative * largest).clamp(min=self.absolute)
        samples = scaled.square().mean(dim=list(range(1, scaled.ndim)))
        error = samples.amax().sqrt()
        accepted = error <= 1
        new_half = torch.where(accepted, half + width, half)
        remaining = self.curve.end - new_half
        new_width = torch.minimum(SAFETY * width * error.pow(-1 / order), remaining)
        return (
            torch.where(accepted, higher, origin),
            torch.where(accepted, lower, previous),
            new_half,
            new_width,
            self.at(new_half)[2],
            remaining <= FINISHED,
            calls + order,
        )


def check_start(path: NoisePath) -> None:
    """Refuses a path that starts at pure noise.

    Raises:
        ValueError: its first alpha is 0, so alpha'/alpha of the first step is infinite.
    """
    if path.split(np.array([path.ends[1]]))[0][0] <= 0:
        raise ValueError(
            "dpm_solver_adaptive: found a path that starts at pure noise (alpha = 0), expected "
            "some signal, because it integrates the noise estimate; use dpm_solver_pp"
        )


def adaptive_program(program: Program, order: int, tolerances: tuple[float, float]) -> Program:
    """A captured program with adaptive steps, fused.

    Args:
        program: with a denoiser and a solver of its own.
        order: 2 compares orders 1 and 2, 3 compares 2 and 3.
        tolerances: absolute and relative, in units of the latent, > 0; the authors use 0.0078 and
            0.05 for images in [-1, 1].
    Raises:
        ValueError: the model's path starts at pure noise, which the noise form cannot leave.
    """
    description = program.description
    assert description is not None
    path = description.noise_schedule.path
    check_start(path)
    denoiser = program.graphs["denoiser"]
    value = denoiser.node("latent").meta["val"]
    curve = Curve(path, value.dtype)
    inner = (0.5,) if order == 2 else (1 / 3, 2 / 3)
    given = (curve, description.prediction, inner)
    modules: list[tuple[str, nn.Module, tuple[str, ...]]] = [
        ("step_first", FirstStage(*given), ("noise_1", "inner", "time"))
    ]
    if order == 3:
        modules.append(("step_middle", MiddleStage(*given), ("noise_2", "inner", "time")))
    last = ("latent", "previous", "half", "width", "time", "done", "calls")
    modules.append(("step_last", LastStage(*given, tolerances), last))
    (denoise, _) = denoising_repeat(program).bodies["step"]
    assert isinstance(denoise, Call)
    slots = _slots(program, order)
    graphs, weights, body = {}, dict(program.weights), []
    for name, module, outputs in modules:
        stage, curve_weights = _traced(module, outputs, value)
        weights |= curve_weights
        graphs[name] = fused_graph(denoiser, stage, evaluate=True)
        read = "latent" if name == "step_first" else "inner"
        body.append(_call(name, denoise, stage, read, {slot.name for slot in slots}))
    others = {name: g for name, g in program.graphs.items() if name not in ("denoiser", "solver")}
    repeat = denoising_repeat(program).model_copy(
        update={"steps": ("try",) * MOST_TRIES, "bodies": {"try": tuple(body)}, "until": "done"}
    )
    dtype = program.tables["timestep"].dtype
    starts = {
        "half": curve.start,
        "width": FIRST_WIDTH,
        "time": float(path.time(np.array([path.ends[1]]))[0]),
    }
    loop = program.loop.model_copy(
        update={
            "slots": slots,
            "body": with_repeat(program, repeat),
            "results": {**program.loop.results, "denoiser_calls": "calls"},
        }
    )
    outputs = (*program.signature.outputs, "denoiser_calls")
    return replace(
        program,
        graphs={**others, **graphs},
        weights=weights,
        tables={f"{name}_start": np.array([item], dtype=dtype) for name, item in starts.items()},
        loop=loop,
        signature=program.signature.model_copy(update={"outputs": outputs}),
    )


def _traced(
    module: nn.Module, outputs: tuple[str, ...], latent: torch.Tensor
) -> tuple[Graph, Mapping[str, torch.Tensor]]:
    """A stage as a graph; it has no sizes in it, so one example serves every batch."""
    example = torch.ones((2, *(int(size) for size in latent.shape[1:])), dtype=latent.dtype)
    scalars = {"half", "width", "calls"}
    names = list(module.forward.__annotations__)[:-1]
    arguments = {
        name: torch.ones((), dtype=latent.dtype) if name in scalars else example for name in names
    }
    traced = trace(module, arguments, outputs, None, False)
    return traced.graph, {name: traced.weights[name] for name in traced.graph.weights.values()}


def _call(name: str, denoise: Call, stage: Graph, latent: str, known: set[str]) -> Call:
    """A stage behind the denoiser, which reads the latent from some slot."""
    slots = {"latent": latent, "origin": "latent"}
    if "noise_2" not in known:  # order 2 has one point inside a step
        slots["noise_2"] = "noise_1"
    inputs = {
        **denoise.inputs,
        "timestep": Binding(source="state", name="time"),
        **{
            item: Binding(source="state", name=slots.get(item, item))
            for item in stage.inputs
            if item != "prediction"
        },
    }
    inputs["latent"] = Binding(source="state", name=latent)
    return Call(
        graph=name,
        inputs=inputs,
        outputs={item: Destination(state=item) for item in stage.outputs},
    )


def _slots(program: Program, order: int) -> tuple[Slot, ...]:
    slots = program.loop.slots
    latent = next(slot for slot in slots if slot.name == "latent")
    dtype, shape = latent.dtype, latent.shape
    assert program.description is not None
    dropped = {"prediction", *kept_slots(captured_step(program.description))}
    kept = [slot for slot in slots if slot.name not in dropped]
    kept += [latent.model_copy(update={"name": "previous"})]
    names = ["inner", "noise_1", *(["noise_2"] if order == 3 else [])]
    kept += [Slot(name=name, dtype=dtype, shape=shape) for name in names]
    for name in ("half", "width", "time"):
        start = Binding(source="table", name=f"{name}_start")
        kept.append(Slot(name=name, dtype=dtype, shape=(), initial=start))
    kept.append(Slot(name="calls", dtype=dtype, shape=()))
    kept.append(Slot(name="done", dtype="bool", shape=()))
    return tuple(kept)

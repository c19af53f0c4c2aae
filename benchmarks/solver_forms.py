"""The forms of an exported loop side by side, and what a step costs beside the network.

    step             one engine call per step
    unrolled         one engine call for all steps, or for a few
    onnx_loop        one engine call, with an ONNX `Loop` inside

All run in one process on one thread; the processor times of that thread are taken in turns and
compared as medians. The step overhead is what a further step adds to a request to a bundle without
a network, against the `step` of diffusers' DPMSolverMultistepScheduler on the same latents.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler

from optimize.capture.capture_model import capture_model
from optimize.capture.from_denoiser import capture
from optimize.capture.scheduler import DiffusersSchedule
from optimize.commands.models import load_model
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.program import Program, denoising_repeat, with_repeat
from optimize.measure.timing import interleaved_seconds
from optimize.passes.fuse_solver import FuseSolver
from optimize.runtime.loop import Binding, Call, Input
from optimize.runtime.session import Session, load

FORMS: Mapping[str, dict[str, Any]] = {
    "step": {},
    "unrolled by 5": {"loop": "unrolled", "unroll": 5},
    "unrolled": {"loop": "unrolled"},
    "onnx_loop": {"loop": "onnx_loop"},
}
SHAPE = (1, 4, 64, 64)
"""The latent of a Stable Diffusion image of 512 x 512 pixels."""

FEW, MANY = 20, 60


@dataclass(frozen=True)
class FormResult:
    """One form of a program.

    Attributes:
        seconds: median of a request.
        difference: largest difference of the latent from that of the form "step".
        megabytes: size of the graphs without weights.
    """

    seconds: float
    difference: float
    megabytes: float


def compare_forms(program: Program, repeats: int, **request: Any) -> dict[str, FormResult]:
    """Exports a program in every form and times requests in turns."""
    with tempfile.TemporaryDirectory() as folder:
        sessions: dict[str, Session] = {}
        sizes: dict[str, int] = {}
        for name, form in FORMS.items():
            bundle = program.export(Path(folder) / name, **form)
            sizes[name] = sum(file.stat().st_size for file in bundle.rglob("*.onnx"))
            sessions[name] = load(bundle, threads=1)
        latents = {name: session(**request)["latent"] for name, session in sessions.items()}
        runs = {name: _bound(session, request) for name, session in sessions.items()}
        seconds = interleaved_seconds(runs, repeats, clock=time.thread_time)
    return {
        name: FormResult(
            statistics.median(seconds[name]),
            float(np.abs(latents[name] - latents["step"]).max()),
            sizes[name] / 1e6,
        )
        for name in FORMS
    }


def _bound(session: Session, request: Mapping[str, Any]) -> Callable[[], object]:
    return lambda: session(**request)


class Denoiser(torch.nn.Module):
    """A small convolutional model of the clean value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = torch.nn.Conv2d(4, width, 3, padding=1)
        self.outside = torch.nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        time = torch.cos(timestep * 0.01).reshape(-1, 1, 1, 1)
        return self.outside(torch.tanh(self.inside(hidden_states) + time))


def digits_program() -> Program:
    """The trained digits model with ten steps of DPM-Solver++ 2M."""
    zoo = load_model("zoo:digits-dit")
    program = capture_model(zoo.model, zoo.example_inputs, loop=zoo.loop)
    return FuseSolver(solver="dpm_solver_pp", order=2, steps=10).rewrite(program).program


def stochastic_program(size: int = 16) -> Program:
    """A small variance-preserving model with twenty steps of stochastic DPM-Solver++ 2M."""
    torch.manual_seed(0)
    inputs = {"hidden_states": torch.randn(2, 4, size, size), "timestep": torch.zeros(2)}
    loop = DenoiseLoop(prediction="denoised", steps=20)
    program = capture(Denoiser(32).eval(), inputs, loop=loop)
    return FuseSolver(solver="dpm_solver_pp", order=2, eta=1.0).rewrite(program).program


def network_free(scheduler: DPMSolverMultistepScheduler, steps: int) -> Program:
    """The steps of a scheduler alone; a request gives the prediction, the same at every step."""
    inputs = {"hidden_states": torch.randn(SHAPE), "timestep": torch.zeros(SHAPE[0])}
    schedule = DiffusersSchedule(type(scheduler).__name__, dict(scheduler.config))
    loop = DenoiseLoop(prediction="epsilon", schedule=schedule, steps=steps)
    program = capture(Denoiser(4).eval(), inputs, loop=loop)
    repeat = denoising_repeat(program)
    (body,) = repeat.bodies.values()
    call = body[-1]
    assert isinstance(call, Call) and call.graph == "solver"
    prediction = Binding(source="request", name="prediction")
    call = call.model_copy(update={"inputs": {**call.inputs, "prediction": prediction}})
    slots = {slot.name: slot for slot in program.loop.slots}
    shape = slots.pop("prediction").shape
    new = repeat.model_copy(update={"bodies": {name: (call,) for name in repeat.bodies}})
    update = {"body": with_repeat(program, new), "slots": tuple(slots.values())}
    field = Input(name="prediction", dtype="float32", shape=shape)
    return replace(
        program,
        graphs={"solver": program.graphs["solver"]},
        loop=program.loop.model_copy(update=update),
        signature=program.signature.model_copy(update={"inputs": (field,)}),
    )


def step_overhead(repeats: int = 31) -> dict[str, float]:
    """Seconds that a further step adds to a run, without the network, in each form and in
    diffusers.

    Runs of `FEW` and of `MANY` steps are timed in turns; what a request costs once (checks, the
    first latent, the result) falls out of their difference.

    Raises:
        RuntimeError: a form gives another latent than diffusers.
    """
    rng = np.random.default_rng(0)
    request = {
        name: rng.standard_normal(SHAPE).astype(np.float32) for name in ("latent", "prediction")
    }
    runs: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for steps in (FEW, MANY):
            scheduler = DPMSolverMultistepScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                timestep_spacing="leading", steps_offset=1,
            )  # fmt: skip
            scheduler.set_timesteps(steps)
            python = _python_loop(scheduler, request)
            runs[f"diffusers {steps}"] = python
            expected = python().numpy()
            program = network_free(scheduler, steps)
            for name, form in FORMS.items():
                bundle = program.export(Path(folder) / f"{name} {steps}", **form)
                session = load(bundle, threads=1)
                found = session(**request)["latent"]
                error = float(np.abs(found - expected).max() / np.abs(expected).max())
                if not error < 1e-5:
                    raise RuntimeError(
                        f"{name}: found a relative difference of {error} from diffusers"
                    )
                runs[f"{name} {steps}"] = _bound(session, request)
        seconds = interleaved_seconds(runs, repeats, warmup=3, clock=time.thread_time)
    median = {name: statistics.median(item) for name, item in seconds.items()}
    return {
        name: (median[f"{name} {MANY}"] - median[f"{name} {FEW}"]) / (MANY - FEW)
        for name in ("diffusers", *FORMS)
    }


def _python_loop(
    scheduler: DPMSolverMultistepScheduler, request: Mapping[str, Any]
) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        latent = torch.from_numpy(request["latent"])
        prediction = torch.from_numpy(request["prediction"])
        # What `set_timesteps` resets, without the time it takes to compute the levels.
        scheduler._step_index = None
        scheduler.lower_order_nums = 0
        scheduler.model_outputs = [None] * scheduler.config.solver_order
        for timestep in scheduler.timesteps:
            latent = scheduler.step(prediction, timestep, latent, return_dict=False)[0]
        return latent

    return run


def main() -> None:
    torch.set_num_threads(1)
    programs = {
        "digits-dit, 10 steps of 2M, batch 1": (digits_program(), {"class_labels": [7]}),
        "small model, 20 steps of stochastic 2M, batch 2": (stochastic_program(), {"batch": 2}),
    }
    for title, (program, request) in programs.items():
        print(title)
        results = compare_forms(program, repeats=31, seed=0, **request)
        base = results["step"].seconds
        for name, found in results.items():
            print(
                f"  {name:14} {found.seconds * 1e3:8.2f} ms  {base / found.seconds:5.2f}x  "
                f"difference {found.difference:.1e}  graphs {found.megabytes:.2f} MB"
            )
    print(f"a step without the network, latents {list(SHAPE)}")
    overhead = step_overhead()
    for name, seconds in overhead.items():
        print(f"  {name:14} {seconds * 1e6:8.1f} us  {overhead['diffusers'] / seconds:5.2f}x")


if __name__ == "__main__":
    main()

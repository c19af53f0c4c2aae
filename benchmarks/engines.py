"""The figures of deployable engines: speed beside PyTorch and a peer, loading, faults, a browser.

    python benchmarks/engines.py --out build/bench/engines.json

Each part runs in a process of its own. `--part NAME` runs one of them and prints its figures.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from parts import Figures, run_parts

HERE = Path(__file__).resolve().parent

ROUNDS = 25
"""Rounds in which the ways of one step take turns."""

FUZZ_SCALE = 0.3
"""Of the inputs that benchmarks/fuzz_bundles.py makes by itself."""

CRASH_EVERY = 2
"""One of so many system calls is made to fail."""


def steps() -> Figures:
    """One step of a small Stable Diffusion 3, one thread: eager, ONNX Runtime, AOTInductor."""
    import tiny_sd3
    import torch

    from optimize.capture.capture_model import capture_model
    from optimize.ir.denoise import DenoiseLoop
    from optimize.measure.timing import interleaved_seconds
    from optimize.runtime import load

    torch.set_num_threads(1)
    model, conditioning = tiny_sd3.build()
    example = {
        "hidden_states": torch.randn(2, 16, 32, 32),
        "timestep": torch.tensor([500.0, 500.0]),
        **{name: torch.cat([item, item]) for name, item in conditioning.items()},
    }
    program = capture_model(model, example, loop=DenoiseLoop(steps=2))
    latent = torch.randn(1, 16, 32, 32, generator=torch.Generator().manual_seed(1))
    request = {name: item.numpy() for name, item in conditioning.items()}
    request["latent"] = latent.numpy()
    velocity = tiny_sd3.velocity(model, conditioning)
    sessions = {}
    errors = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, options in {
            "ort": {},
            "ort_int8": {"precision": "int8"},
            "aoti": {"target": "aoti"},
            "aoti_bfloat16": {"target": "aoti", "precision": "bfloat16"},
        }.items():
            path = program.export(Path(folder) / name, **options)
            target: Any = options.get("target", "onnx")
            sessions[name] = load(path, target=target, threads=1, trust="native")
        expected = program(**request)["latent"].numpy()
        for name, session in sessions.items():
            found = session(**request)["latent"]
            errors[name] = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        runs: dict[str, Callable[[], object]] = {"eager": lambda: velocity(latent, 0.5)}
        runs |= {name: _one_call(session, request) for name, session in sessions.items()}
        seconds = interleaved_seconds(runs, ROUNDS, warmup=3)
    figures: Figures = {"step_seconds": {name: _median(item) for name, item in seconds.items()}}
    for name in sessions:
        pairs = zip(seconds["eager"], seconds[name], strict=True)
        figures[f"{name}_vs_eager"] = _median([eager / ours for eager, ours in pairs])
        figures[f"{name}_error"] = errors[name]
    return figures


def _one_call(session: Any, request: dict[str, Any]) -> Callable[[], object]:
    """One engine call of the denoiser, on its inputs at the first step."""
    run = session._run(request, None, None)
    run.begin()
    call = run.loop.body[0].bodies["step"][0]
    inputs = run.inputs(call, 0)
    return lambda: run.engine.run(call.graph, inputs, dict.fromkeys(call.outputs))


def _median(values: list[float]) -> float:
    return float(np.median(values))


def loop() -> Figures:
    """What the loop costs beyond its engine calls: a whole request less the calls within it."""
    from optimize.runtime.onnx_engine import OnnxEngine

    with tempfile.TemporaryDirectory() as folder:
        session, request = _digits(Path(folder), 50)
        inside = 0.0
        plain = OnnxEngine.run

        def timed(self: Any, *arguments: Any) -> Any:
            nonlocal inside
            start = time.perf_counter()
            result = plain(self, *arguments)
            inside += time.perf_counter() - start
            return result

        OnnxEngine.run = timed  # type: ignore[method-assign]
        shares = []
        for number in range(33):
            inside, start = 0.0, time.perf_counter()
            session(seed=number, **request)
            whole = time.perf_counter() - start
            if number >= 3:
                shares.append(whole / inside - 1)
    return {"loop_overhead": _median(shares)}


def _digits(folder: Path, steps: int) -> tuple[Any, dict[str, Any]]:
    """A session of zoo:digits-dit with so many steps, and a request of four digits."""
    from optimize.capture.capture_model import capture_model
    from optimize.commands.models import load_model
    from optimize.ir.denoise import DenoiseLoop
    from optimize.runtime import load

    zoo = load_model("zoo:digits-dit")
    program = capture_model(zoo.model, zoo.example_inputs, loop=DenoiseLoop(steps=steps))
    session = load(program.export(folder / "digits"), threads=1)
    return session, {"class_labels": np.arange(4)}


def language() -> Figures:
    """Tokens per second beside optimum-onnx's export of the same Llama."""
    import visual_pruning_tokens

    figures = visual_pruning_tokens.tokens()
    return {
        "lm_vs_optimum": figures["tokens_vs_optimum_small"],
        "lm_vs_optimum_medium": figures["tokens_vs_optimum_medium"],
        "lm_vs_generate": figures["tokens_vs_generate_small"],
    }


def loading() -> Figures:
    """Time to open a bundle of half a gigabyte, and how fast its bytes are verified."""
    import torch

    from optimize.capture.from_denoiser import capture
    from optimize.ir.denoise import DenoiseLoop
    from optimize.runtime import load
    from optimize.runtime.bundle import open_bundle

    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(4096, 4096) for _ in range(8))

        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                hidden_states = hidden_states + layer(hidden_states)
            return hidden_states * timestep[:, None, None]

    inputs = {"hidden_states": torch.randn(2, 2, 4096), "timestep": torch.ones(2)}
    program = capture(Wide().eval(), inputs, loop=DenoiseLoop(steps=1))
    with tempfile.TemporaryDirectory() as folder:
        path = program.export(Path(folder) / "wide")
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        wall, cpu, whole = [], [], []
        for _ in range(5):
            start, used = time.perf_counter(), time.process_time()
            open_bundle(path)
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - used)
            start = time.perf_counter()
            load(path).close()
            whole.append(time.perf_counter() - start)
    return {
        "bundle_bytes": size,
        "load_seconds": min(whole),
        "verify_bytes_per_core_second": size / min(cpu),
        "verify_bytes_per_second": size / min(wall),
    }


def threads() -> Figures:
    """8 threads with 200 requests each on one session: bit for bit what one thread gets."""
    from soak import pictures

    figures = pictures()
    return {
        "thread_requests": figures["pictures_requests"],
        "thread_mismatches": figures["pictures_different"],
        "thread_seconds": figures["pictures_seconds"],
        "thread_memory_growth_mib": figures["pictures_rss_growth_mib"],
    }


def faults() -> Figures:
    """Hostile bundles, and exports that fail or are killed at each of their system calls."""
    fuzz = _script("fuzz_bundles.py", "--scale", str(FUZZ_SCALE))
    kinds = [item for item in fuzz.values() if isinstance(item, dict)]
    crash = _script("crash_points.py", "--every", str(CRASH_EVERY))
    return {
        "fuzz_inputs": sum(item["inputs"] for item in kinds),
        "fuzz_crashes": sum(item["crashes"] + item["untyped"] for item in kinds),
        "fuzz_hangs": sum(item["hangs"] for item in kinds),
        "fuzz_peak_growth_mib": max(item["peak_growth_mib"] for item in kinds),
        "crash_points": crash["points"],
        "half_bundles": crash["half"],
        "lost_bundles": crash["lost"],
        "crash_hangs": crash["hangs"],
    }


def _script(name: str, *options: str) -> Figures:
    """The figures of a benchmark that is a script of its own; what failed is in them."""
    out = Path("build/bench") / name.replace(".py", ".json")
    command = [sys.executable, str(HERE / name), "--out", str(out), *options]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    figures: Figures = json.loads(out.read_text())["figures"]
    return figures


def browser() -> Figures:
    """Digits by onnxruntime-web in headless Chromium beside the session of Python."""
    import browser as in_browser

    with tempfile.TemporaryDirectory() as folder:
        session, request = _digits(Path(folder), 8)
        session.close()
        fields = {"class_labels": request["class_labels"].tolist()}
        figures = in_browser.browser_figures(Path(folder) / "digits", fields, seed=0)
    return {
        "browser_error": figures["error"],
        "browser_seconds_per_image": figures["seconds_per_image"],
    }


PARTS: dict[str, Callable[[], Figures]] = {
    part.__name__: part for part in (steps, loop, language, loading, threads, faults, browser)
}


if __name__ == "__main__":
    run_parts(__doc__, "engines", PARTS, ("torch", "onnxruntime", "numpy"))

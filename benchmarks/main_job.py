"""The figures of the main job: demo, efficiency, overheads, scale, and peers on a small SD3.

    python benchmarks/main_job.py --out build/bench/main_job.json

Each part runs in a process of its own. `--part NAME` runs one of them and prints its figures.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parts import Figures, run_parts

HERE = Path(__file__).resolve().parent


def demo() -> Figures:
    """Time and quality of `optimize demo` against the 50-step Euler baseline in eager PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "optimize.cli", "demo", "--out", f"{folder}/demo"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        report = json.loads(Path(folder, "demo", "report.json").read_text())
    baseline, ours = report["quality"]["baseline"], report["quality"]["ours"]
    distance = "distance to the fine solution"
    calls, seconds = report["controls"]
    return {
        "speedup": report["speedup"],
        "frechet_ratio": ours["Fréchet distance"] / baseline["Fréchet distance"],
        "judge_drop": baseline["judge accuracy"] - ours["judge accuracy"],
        "beats_control_calls": ours[distance] < calls["quality"][distance],
        "beats_control_time": ours[distance] < seconds["quality"][distance],
        "demo": {key: report[key] for key in ("speedup", "quality", "controls", "passes")},
    }


def efficiency() -> Figures:
    """Step time of all tokens over step time of some, against the ratio of their FLOPs."""
    import numpy as np
    import torch
    from diffusers import DiTTransformer2DModel

    from optimize.capture.from_denoiser import capture
    from optimize.export.bundle import export_bundle
    from optimize.ir.denoise import DenoiseLoop
    from optimize.ir.torch_engine import TorchEngine
    from optimize.measure.cost import graph_flops
    from optimize.passes.cache_regions import CacheRegions
    from optimize.passes.fuse_solver import FuseSolver
    from optimize.passes.pipeline import run_passes
    from optimize.runtime.session import load

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=4, num_layers=12,
        sample_size=64, patch_size=2, num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 4, 64, 64),
        "timestep": torch.tensor([3, 5]),
        "class_labels": torch.tensor([1, 2]),
    }
    loop = DenoiseLoop(prediction="epsilon", steps=6)
    program = capture(model, inputs, loop=loop)
    figures: Figures = {}
    for keep in (0.5, 0.25):
        passes = [CacheRegions(keep, warmup=2), FuseSolver()]
        regions = run_passes(program, passes, verify=False)
        whole, some = "step", f"step_rows_{int(1024 * keep)}"
        flops = graph_flops(regions.graphs[whole]) / graph_flops(regions.graphs[some])
        with tempfile.TemporaryDirectory() as folder:
            session = load(export_bundle(regions, f"{folder}/bundle"), threads=1)
            steps = [_step_seconds(session, np.array([1])) for _ in range(4)]
        # Steps 1 and 2..5: the first one also warms the caches of the machine.
        exported = statistics.median(s[1] for s in steps) / statistics.median(
            seconds for s in steps for seconds in s[2:]
        )
        engine = TorchEngine(regions.graphs, regions.weights)
        compiled = _compiled_ratio(engine, whole, some)
        name = f"efficiency_keep{int(100 * keep)}"
        figures[name] = min(exported, compiled) / flops
        figures[f"{name}_parts"] = {
            "flop_ratio": flops, "onnx_ratio": exported, "compiled_ratio": compiled,
        }  # fmt: skip
    return figures


def _step_seconds(session: Any, labels: Any) -> list[float]:
    marks = [time.perf_counter()]
    session(seed=1, class_labels=labels, progress=lambda *_: marks.append(time.perf_counter()))
    return [after - before for before, after in zip(marks[:-1], marks[1:], strict=True)]


def _compiled_ratio(engine: Any, whole: str, some: str) -> float:
    """The same ratio of the two graphs under torch.compile, at batch 1."""
    import torch

    from optimize.ir.graph import hint, placeholders

    def prepared(name: str) -> Callable[[], object]:
        graph = engine.graphs[name]
        arguments = []
        for item in placeholders(graph.graph):
            if item in graph.weights:
                arguments.append(engine.weights[graph.weights[item]])
                continue
            value = graph.node(item).meta["val"]
            shape = [size if isinstance(size, int) else hint(size) // 2 for size in value.shape]
            arguments.append(torch.ones(shape, dtype=value.dtype))
        compiled = torch.compile(graph.module, dynamic=False)

        def run() -> object:
            with torch.no_grad():
                return compiled(*arguments)

        run()
        return run

    runs = {name: prepared(name) for name in (whole, some)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(5):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return statistics.median(seconds[whole]) / statistics.median(seconds[some])


def driver() -> Figures:
    """Time of a loop outside its engine calls, per call, with 51 state slots."""
    import torch
    from diffusers import DiTTransformer2DModel

    from optimize.capture.from_denoiser import capture
    from optimize.export.bundle import export_bundle
    from optimize.ir.denoise import DenoiseLoop
    from optimize.passes.cache_regions import CacheRegions
    from optimize.passes.fuse_solver import FuseSolver
    from optimize.passes.pipeline import run_passes
    from optimize.runtime.session import load

    model = DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=23,
        sample_size=8, patch_size=2, num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([3, 5]),
        "class_labels": torch.tensor([1, 2]),
    }
    program = capture(model, inputs, loop=DenoiseLoop(prediction="epsilon", steps=200))
    program = run_passes(program, [CacheRegions(0.5, warmup=2), FuseSolver()], verify=False)
    with tempfile.TemporaryDirectory() as folder:
        session = load(export_bundle(program, f"{folder}/bundle"), threads=1)
        clocks = {name: _Clock(inner) for name, inner in session._graphs.sessions.items()}
        session._graphs.sessions.update(clocks)
        outside = []
        for _ in range(10):
            for clock in clocks.values():
                clock.seconds = 0.0
            start = time.perf_counter()
            session(seed=0, class_labels=[1])
            total = time.perf_counter() - start
            outside.append((total - sum(clock.seconds for clock in clocks.values())) / 200)
    return {"driver_us": 1e6 * statistics.median(outside), "driver_slots": len(program.loop.slots)}


class _Clock:
    """An inference session whose engine calls are timed."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.seconds = 0.0
        self._sess = self

    def io_binding(self) -> Any:
        return self.inner.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        start = time.perf_counter()
        self.inner._sess.run_with_iobinding(binding, options)
        self.seconds += time.perf_counter() - start


def runtime_import() -> Figures:
    """Seconds to import the runtime in a new process, and whether torch came with it."""
    script = (
        "import time; start = time.perf_counter(); import optimize.runtime.session, sys;"
        "print(time.perf_counter() - start, 'torch' in sys.modules)"
    )
    lines = [subprocess.check_output([sys.executable, "-c", script], text=True) for _ in range(5)]
    return {
        "runtime_import_s": statistics.median(float(line.split()[0]) for line in lines),
        "runtime_imports_torch": any("True" in line for line in lines),
    }


def session_memory() -> Figures:
    """Peak memory of a session of two graphs over 280 MB of weights, in a process without torch."""
    import torch
    from diffusers import DiTTransformer2DModel

    from optimize.capture.from_denoiser import capture
    from optimize.export.bundle import export_bundle
    from optimize.ir.denoise import DenoiseLoop
    from optimize.passes.cache_regions import CacheRegions
    from optimize.passes.fuse_solver import FuseSolver
    from optimize.passes.pipeline import run_passes

    model = DiTTransformer2DModel(
        num_attention_heads=12, attention_head_dim=64, in_channels=4, out_channels=4,
        num_layers=6, sample_size=16, patch_size=2, num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 4, 16, 16),
        "timestep": torch.tensor([3, 5]),
        "class_labels": torch.tensor([1, 2]),
    }
    program = capture(model, inputs, loop=DenoiseLoop(prediction="epsilon", steps=4))
    program = run_passes(program, [CacheRegions(0.5, warmup=2), FuseSolver()], verify=False)
    script = (
        "import re, sys\nfrom optimize.runtime import load\nimport numpy as np\n"
        "session = load(sys.argv[1], threads=1)\nsession(seed=0, class_labels=np.array([1]))\n"
        # Not `ru_maxrss`, which a new process inherits from the one that started it.
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024)"
    )
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_bundle(program, f"{folder}/bundle")
        weights = (bundle / "graphs" / "weights.safetensors").stat().st_size
        peak = int(subprocess.check_output([sys.executable, "-c", script, bundle], text=True))
    return {
        # At most 1.3 is asked for, after 150 MB for the process itself.
        "session_memory_ratio": (peak - 150e6) / weights,
        "session_peak_bytes": peak,
        "session_weights_bytes": weights,
    }


def capture_sd3(layers: int = 24) -> Figures:
    """Capture and passes on an SD3-medium-shaped model in bfloat16: seconds and peak memory."""
    import resource

    import torch
    from diffusers import SD3Transformer2DModel

    from optimize import optimize
    from optimize.ir.denoise import DenoiseLoop

    with torch.device("meta"):
        model = SD3Transformer2DModel(
            sample_size=128, patch_size=2, in_channels=16, num_layers=layers, attention_head_dim=64,
            num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536,
            pooled_projection_dim=2048, out_channels=16, pos_embed_max_size=192,
        )  # fmt: skip
    model = model.to(torch.bfloat16).to_empty(device="cpu").eval()
    tensors = [*model.parameters(), *model.buffers()]
    with torch.no_grad():
        for tensor in tensors:
            tensor.uniform_(-0.02, 0.02)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    inputs = {
        "hidden_states": torch.randn(2, 16, 128, 128, dtype=torch.bfloat16),
        "timestep": torch.tensor([300.0, 500.0]),
        "encoder_hidden_states": torch.randn(2, 154, 4096, dtype=torch.bfloat16),
        "pooled_projections": torch.randn(2, 2048, dtype=torch.bfloat16),
    }
    recipe = {
        "passes": ["cache_regions", {"fuse_solver": {"solver": "dpm_solver_pp", "steps": 10}}]
    }
    start = time.perf_counter()
    optimize(
        model, recipe, example_inputs=inputs, loop=DenoiseLoop(steps=28), verify=False,
        progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "capture_s": seconds,
        "capture_peak_bytes": peak,
        "capture_weights_bytes": weights,
        "capture_memory_over_budget": peak > 1.5 * weights + 2e9,
    }


def tiny_sd3() -> Figures:
    """`optimize` beside eager, torch.compile, cache-dit and fewer steps."""
    sys.path.insert(0, str(HERE))
    from tiny_sd3 import measure

    return measure()


PARTS: dict[str, Callable[[], Figures]] = {
    part.__name__: part
    for part in (
        runtime_import, driver, session_memory, efficiency, tiny_sd3, demo, capture_sd3,
    )
}  # fmt: skip


if __name__ == "__main__":
    run_parts(
        __doc__, "main_job", PARTS, ("torch", "onnxruntime", "diffusers", "numpy", "cache-dit")
    )

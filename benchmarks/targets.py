"""Which programs become which targets, and how near the results are: writes docs/targets.md.

    python benchmarks/targets.py --out build/bench/targets.json --page docs/targets.md

Every zoo model and the eight diffusion families (random weights), each exported for ONNX, for
AOTInductor and for TensorRT-RTX (SM89 and SM120). What can run here runs, and its results are
compared with the program's own in PyTorch. Takes about 40 minutes: AOTInductor compiles some sixty
graphs. Finished programs are kept in the JSON file, and a second run goes on behind them.
"""

import argparse
import datetime
import gc
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optimize.capture.capture_model import capture_model
from optimize.capture.from_denoiser import capture
from optimize.commands.models import load_model
from optimize.commands.zoo import LOADERS
from optimize.ir.errors import OptimizeError
from optimize.ir.program import Program, as_arrays
from optimize.passes.calibration import requests
from optimize.passes.pipeline import results_error
from optimize.recipes.zoo.families import FAMILIES, example
from optimize.runtime import load, machine

TARGETS = ("onnx", "aoti", "tensorrt-rtx")
FAMILY_STEPS = 4


def programs() -> dict[str, Any]:
    """Name → what makes the program and its example inputs."""

    def zoo(name: str) -> tuple[Program, Any]:
        model = load_model(f"zoo:{name}")
        program = capture_model(model.model, model.example_inputs, loop=model.loop)
        return program, model.example_inputs

    def family(name: str) -> tuple[Program, Any]:
        made = example(name)
        return capture(made.module, made.inputs, loop=made.loop(FAMILY_STEPS)), None

    found: dict[str, Any] = {f"zoo:{name}": lambda name=name: zoo(name) for name in LOADERS}
    return found | {name: lambda name=name: family(name) for name in FAMILIES}


def measure(program: Program, examples: Any) -> dict[str, dict[str, Any]]:
    """Target → built, ran, error, bytes and seconds."""
    (request,) = requests(program, None, examples)[:1]
    asked = as_arrays(request)
    expected = _arrays(program(**asked))
    return {target: _one(program, target, asked, expected) for target in TARGETS}


def _one(
    program: Program, target: str, request: dict[str, Any], expected: dict[str, Any]
) -> dict[str, Any]:
    row: dict[str, Any] = {"graphs": len(program.graphs)}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            path = program.export(Path(folder) / "bundle", target=target)
        except OptimizeError as error:
            return row | {"built": False, "why": _short(error)}
        facts = json.loads((path / "report.json").read_text())["targets"][target]
        row |= {"built": True, "bytes": facts["bytes"], "seconds": time.perf_counter() - start}
        row["weight_bytes"] = (path / "graphs" / "weights.safetensors").stat().st_size
        try:
            with load(path, target=target, trust="native") as session:
                found = _arrays(session(**request))
        except OptimizeError as error:
            return row | {"ran": False, "why": _short(error)}
    return row | {"ran": True, "error": results_error([found], [expected])}


def _arrays(results: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in as_arrays(results).items() if hasattr(item, "dtype")}


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:240]


def page(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The Markdown of docs/targets.md."""
    lines = [
        "# Targets",
        "",
        "What was built and run of every zoo model and of eight diffusion families (random",
        f"weights, {FAMILY_STEPS} steps), by",
        f"`python benchmarks/targets.py --page docs/targets.md` on {datetime.date.today()}:",
        f"{_machine()}.",
        "",
        "Error: of the results of a whole request, relative to the program in PyTorch; of tokens",
        "the share that differs. Size: the files of the target beside the weights that all share;",
        "an engine of TensorRT-RTX holds its own copy of the weights. Seconds: the whole export,",
        "other work running beside it. TensorRT-RTX engines are for SM89 and SM120 and need such a",
        "GPU to run; here they are built only.",
        "",
        "| program | graphs | weights | target | built | ran | error | size | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    reasons: list[str] = []
    for name, targets in rows.items():
        for target, row in targets.items():
            first = target == TARGETS[0]
            weights = f"{row['weight_bytes'] / 1e6:.1f} MB" if "weight_bytes" in row else ""
            own = row.get("bytes", 0) - (row.get("weight_bytes", 0) if first else 0)
            lines.append(
                f"| {name if first else ''} | {row['graphs'] if first else ''} "
                f"| {weights if first else ''} | {target} | {_yes(row.get('built'))} "
                f"| {_ran(row)} | {_number(row.get('error'))} "
                f"| {own / 1e6:.2f} MB | {row.get('seconds', 0):.0f} |"
            )
            if "why" in row and not str(row["why"]).endswith("found none"):
                reasons.append(f"- {name}, {target}: {row['why']}")
    built = {t: sum(bool(r[t].get("built")) for r in rows.values() if t in r) for t in TARGETS}
    ran = {t: sum(bool(r[t].get("ran")) for r in rows.values() if t in r) for t in TARGETS}
    lines += [
        "",
        f"Built of {len(rows)} programs: " + ", ".join(f"{t} {n}" for t, n in built.items()),
    ]
    lines[-1] += "; ran: " + ", ".join(f"{t} {n}" for t, n in ran.items()) + "."
    if reasons:
        lines += ["", "## What was refused, and why", "", *reasons]
    return "\n".join(lines) + "\n"


def _machine() -> str:
    libraries = ", ".join(
        f"{name} {machine.version_of(name)}" for name in ("torch", "tensorrt_rtx")
    )
    import onnxruntime

    return f"{platform.machine()}, no GPU, {libraries}, onnxruntime {onnxruntime.__version__}"


def _yes(value: Any) -> str:
    return "yes" if value else "no"


def _ran(row: dict[str, Any]) -> str:
    if row.get("ran"):
        return "yes"
    return "no GPU" if "found none" in str(row.get("why", "")) else "no"


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"


def main() -> None:
    """Measures what the JSON file does not have yet, and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/targets.json"))
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only", nargs="*", help="names of programs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(given.out.read_text()) if given.out.is_file() else {}
    for name, make in programs().items():
        if name in rows or (given.only and name not in given.only):
            continue
        rows[name] = measure(*make())
        shown = {t: (r.get("error", r.get("why")), r.get("seconds")) for t, r in rows[name].items()}
        print(name, shown, flush=True)
        given.out.write_text(json.dumps(rows, indent=1))
        gc.collect()
    order = [name for name in programs() if name in rows]
    if given.page is not None:
        given.page.write_text(page({name: rows[name] for name in order}))
    worst = max((r["error"] for t in rows.values() for r in t.values() if "error" in r), default=0)
    print(
        f"largest error {worst:.1e}",
        np.sum([r["built"] for t in rows.values() for r in t.values()]),
    )


if __name__ == "__main__":
    main()

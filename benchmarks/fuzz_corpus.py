"""The bundle that is damaged and crashed in benchmarks, and how their figures are written."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parts import environment

PACKAGES = ("numpy", "onnx", "onnxruntime", "pydantic")


def small_bundle(path: Path) -> Path:
    """Exports eight steps of the smallest denoiser of the zoo.

    PyTorch is imported here only, so that a caller may do so in a process of its own.
    """
    import torch

    from optimize.capture.from_denoiser import capture
    from optimize.export.bundle import export_bundle
    from optimize.recipes.zoo.families import example

    torch.manual_seed(0)
    made = example("sd3", dtype=torch.float32)
    return export_bundle(capture(made.module, made.inputs, loop=made.loop(2)), path)


def finish(out: Path, figures: Mapping[str, Any], failed: int) -> int:
    """Writes and prints the figures; the exit code, 1 if anything failed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    result = {"figures": figures, "environment": environment(PACKAGES)}
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    print(f"{failed} failures; figures in {out}", file=sys.stderr)
    return 1 if failed else 0

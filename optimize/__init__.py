"""A compiler for generative models: rewrites what is computed, proves it, ships it without PyTorch.

    from optimize import DenoiseLoop, optimize
    program = optimize(model, "image-fast", example_inputs=inputs, loop=DenoiseLoop(steps=50))
    program.export("bundle/")

    from optimize.runtime import load
    result = load("bundle/")(seed=0)

Names are imported when first used: importing this package loads neither PyTorch nor ONNX Runtime.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.ir.exporting import EXPORTERS

if TYPE_CHECKING:
    from optimize.api import optimize
    from optimize.ir.decode import DecodeLoop, Sampling
    from optimize.ir.denoise import DenoiseLoop
    from optimize.ir.mean_reverting import MeanRevertingSchedule
    from optimize.ir.program import Program
    from optimize.ir.report import Report
    from optimize.ir.schedules import FlowSchedule, Respaced, VarianceSchedule
    from optimize.ir.torus_flow import TorusFlowLoop
    from optimize.ir.unmask import UnmaskLoop
    from optimize.recipes.recipe import Budget, Recipe

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "DecodeLoop",
    "DenoiseLoop",
    "FlowSchedule",
    "MeanRevertingSchedule",
    "Program",
    "Recipe",
    "Report",
    "Respaced",
    "Sampling",
    "TorusFlowLoop",
    "UnmaskLoop",
    "VarianceSchedule",
    "__version__",
    "optimize",
]

_HOMES = {
    "optimize": "optimize.api",
    "DecodeLoop": "optimize.ir.decode",
    "DenoiseLoop": "optimize.ir.denoise",
    "FlowSchedule": "optimize.ir.schedules",
    "MeanRevertingSchedule": "optimize.ir.mean_reverting",
    "Respaced": "optimize.ir.schedules",
    "VarianceSchedule": "optimize.ir.schedules",
    "Program": "optimize.ir.program",
    "Sampling": "optimize.ir.decode",
    "TorusFlowLoop": "optimize.ir.torus_flow",
    "UnmaskLoop": "optimize.ir.unmask",
    "Report": "optimize.ir.report",
    "Budget": "optimize.recipes.recipe",
    "Recipe": "optimize.recipes.recipe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'optimize' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _write_bundle(program: Any, path: Any, **options: Any) -> Path:
    from optimize.write_bundle import write_bundle

    return write_bundle(program, path, **options)


if not EXPORTERS:
    EXPORTERS.append(_write_bundle)

"""Every kernel with a Triton form says how to compile it."""

from pathlib import Path

from optimize.kernels.catalog import ONNX_LOWERINGS
from optimize.kernels.triton_forms import TRITON_FORMS

KERNELS = Path(__file__).parents[2] / "kernels"


def test_every_triton_kernel_compiles_ahead_of_time():
    folders = {path.parent.name for path in KERNELS.glob("*/triton_kernel.py")}
    assert {f"optimize::{name}" for name in folders} == set(TRITON_FORMS) <= set(ONNX_LOWERINGS)

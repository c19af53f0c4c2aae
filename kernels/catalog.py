"""The kernels: op name → its ONNX lowering. Importing this registers the ops with PyTorch."""

from collections.abc import Callable, Mapping
from typing import Any

from optimize.kernels.cached_attention import onnx_lowering as cached_attention
from optimize.kernels.dynamic_threshold import onnx_lowering as dynamic_threshold
from optimize.kernels.gather_rows import onnx_lowering as gather_rows
from optimize.kernels.scatter_rows import onnx_lowering as scatter_rows
from optimize.kernels.solver_step import onnx_lowering as solver_step
from optimize.kernels.tile_attention import onnx_lowering as tile_attention
from optimize.kernels.tree_attention import onnx_lowering as tree_attention

ONNX_LOWERINGS: Mapping[str, Callable[..., Any]] = {
    "optimize::cached_attention": cached_attention.lower,
    "optimize::dynamic_threshold": dynamic_threshold.lower,
    "optimize::gather_rows": gather_rows.lower,
    "optimize::scatter_rows": scatter_rows.lower,
    "optimize::solver_step": solver_step.lower,
    "optimize::tile_attention": tile_attention.lower,
    "optimize::tree_attention": tree_attention.lower,
}

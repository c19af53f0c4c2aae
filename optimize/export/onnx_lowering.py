"""The table of ATen ops the exporter lowers itself, and the rules they share.

A lowering is a function of the builder, the FX node and the node's arguments, where every tensor
argument (and every symbolic size) is already an ONNX value. Ops that are not in the table are
lowered by onnxscript's torchlib (`onnx_torchlib.py`), or decomposed (`onnx_decompose.py`).
"""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from optimize.export.onnx_builder import OnnxBuilder
from optimize.ir.graph import Size

aten = torch.ops.aten
Lowering = Callable[..., Any]
"""(builder, node, *arguments) → a value, or a tuple of values."""

TABLE: dict[Any, Lowering] = {}


def lowers(*targets: Any) -> Callable[[Lowering], Lowering]:
    """Enters a lowering into the table under FX targets."""

    def enter(lowering: Lowering) -> Lowering:
        for target in targets:
            if target in TABLE:
                raise ValueError(f"{target} has two lowerings")
            TABLE[target] = lowering
        return lowering

    return enter


def out_shape(node: fx.Node) -> tuple[Size, ...]:
    """The traced shape of a node's result."""
    return tuple(node.meta["val"].shape)


def out_dtype(node: fx.Node) -> torch.dtype:
    """The traced dtype of a node's result."""
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def traced(argument: Any) -> Any:
    """The traced value behind an FX argument: a fake tensor or symbolic size, or the number."""
    return argument.meta["val"] if isinstance(argument, fx.Node) else argument


def same_size(left: Size, right: Size) -> bool:
    """Whether two sizes are the same expression; never adds a guard."""
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    if isinstance(left, int) or isinstance(right, int):
        return False
    return bool(left.node.expr == right.node.expr)


def operand(
    b: OnnxBuilder, node: fx.Node, position: int, value: Any, dtype: torch.dtype
) -> ir.Value:
    """Argument `position` of an elementwise op, promoted to `dtype`; numbers become constants."""
    if not isinstance(value, ir.Value):
        return b.constant(value, dtype)
    source = traced(node.args[position])
    found = source.dtype if isinstance(source, torch.Tensor) else torch.int64
    return value if found == dtype else b.cast(value, dtype)


def promoted(node: fx.Node, *positions: int) -> torch.dtype:
    """The dtype PyTorch computes in, given these arguments of an elementwise op."""
    kinds: list[Any] = []
    for position in positions:
        source = traced(node.args[position])
        # Promotion depends on dtypes and on whether a tensor has dimensions, not on its sizes.
        kinds.append(
            torch.empty((1,) * source.dim(), dtype=source.dtype)
            if isinstance(source, torch.Tensor)
            else (1 if isinstance(source, torch.SymInt) else source)
        )
    return torch.result_type(kinds[0], kinds[1])

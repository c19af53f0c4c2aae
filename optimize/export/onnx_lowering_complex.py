"""Lowerings of complex tensors, which ONNX holds as real ones with a last dimension of 2.

Rotary embeddings are the only place generative models use them, so the list is short.
"""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from optimize.export.onnx_builder import OnnxBuilder
from optimize.export.onnx_lowering import TABLE, Lowering, aten, out_shape, traced

COMPLEX_TABLE: dict[Any, Lowering] = {}


def _lowers(*targets: Any) -> Callable[[Lowering], Lowering]:
    def enter(lowering: Lowering) -> Lowering:
        COMPLEX_TABLE.update(dict.fromkeys(targets, lowering))
        return lowering

    return enter


def _axis(node: fx.Node, dim: int) -> int:
    """A dimension counted from the left, where the last one of 2 does not shift it."""
    example = traced(node.args[0])
    rank = (example if isinstance(example, torch.Tensor) else traced(node.args[0][0])).dim()  # type: ignore[index]
    return dim if dim >= 0 else dim + rank


@_lowers(aten.view_as_complex.default, aten.view_as_real.default)
@_lowers(aten.clone.default, aten.alias.default, aten._to_copy.default, aten.detach.default)
def _same(b: OnnxBuilder, node: fx.Node, x: ir.Value, *_: Any, **__: Any) -> ir.Value:
    return x


@_lowers(aten.unsqueeze.default, aten.view.default, aten.squeeze.dim, aten._unsafe_view.default)
def _reshape(b: OnnxBuilder, node: fx.Node, x: ir.Value, *_: Any) -> ir.Value:
    return b.reshape(x, (*out_shape(node), 2))


@_lowers(aten.expand.default)
def _expand(b: OnnxBuilder, node: fx.Node, x: ir.Value, *_: Any) -> ir.Value:
    return b.op("Expand", x, b.shape([b.size(size) for size in (*out_shape(node), 2)]))


@_lowers(aten.permute.default)
def _permute(b: OnnxBuilder, node: fx.Node, x: ir.Value, dims: list[int]) -> ir.Value:
    return b.op("Transpose", x, perm=[*(_axis(node, dim) for dim in dims), len(dims)])


@_lowers(aten.transpose.int)
def _transpose(b: OnnxBuilder, node: fx.Node, x: ir.Value, first: int, second: int) -> ir.Value:
    order = list(range(len(out_shape(node)) + 1))
    first, second = _axis(node, first), _axis(node, second)
    order[first], order[second] = order[second], order[first]
    return b.op("Transpose", x, perm=order)


@_lowers(aten.slice.Tensor, aten.select.int, aten.index_select.default)
def _along_axis(b: OnnxBuilder, node: fx.Node, x: ir.Value, dim: int = 0, *rest: Any) -> ir.Value:
    result: ir.Value = TABLE[node.target](b, node, x, _axis(node, dim), *rest)
    return result


@_lowers(aten.cat.default)
def _cat(b: OnnxBuilder, node: fx.Node, tensors: list[ir.Value], dim: int = 0) -> ir.Value:
    return b.op("Concat", *tensors, axis=_axis(node, dim))


@_lowers(aten.mul.Tensor)
def mul(b: OnnxBuilder, node: fx.Node, x: Any, y: Any) -> ir.Value:
    """(a + ib)(c + id) = (ac - bd) + i(ad + bc); a real factor scales both parts."""
    if not isinstance(y, ir.Value):
        real_dtype = traced(node.args[0]).dtype.to_real()
        return b.op("Mul", x, b.constant(y, real_dtype))
    complex_x, complex_y = (traced(item).is_complex() for item in node.args[:2])
    last = b.integers([-1])
    if not (complex_x and complex_y):
        x = x if complex_x else b.op("Unsqueeze", x, last)
        y = y if complex_y else b.op("Unsqueeze", y, last)
        return b.op("Mul", x, y)
    (real_x, imaginary_x), (real_y, imaginary_y) = _parts(b, x), _parts(b, y)
    real = b.op("Sub", b.op("Mul", real_x, real_y), b.op("Mul", imaginary_x, imaginary_y))
    imaginary = b.op("Add", b.op("Mul", real_x, imaginary_y), b.op("Mul", imaginary_x, real_y))
    return b.op("Concat", real, imaginary, axis=-1)


@_lowers(aten.polar.default)
def _polar(b: OnnxBuilder, node: fx.Node, size: ir.Value, angle: ir.Value) -> ir.Value:
    last = b.integers([-1])
    parts = (b.op("Mul", size, b.op(op_type, angle)) for op_type in ("Cos", "Sin"))
    return b.op("Concat", *(b.op("Unsqueeze", part, last) for part in parts), axis=-1)


@_lowers(aten.real.default, aten.imag.default)
def _part(b: OnnxBuilder, node: fx.Node, x: ir.Value) -> ir.Value:
    index = b.constant(int(node.target is aten.imag.default), torch.int64)
    return b.op("Gather", x, index, axis=-1)


def _parts(b: OnnxBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
    return b.op_many("Split", x, b.integers([1, 1]), axis=-1, outputs=2)

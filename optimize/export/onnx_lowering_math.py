"""Lowerings of elementwise ops, reductions and constants."""

import math
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from optimize.export.onnx_builder import OnnxBuilder
from optimize.export.onnx_lowering import (
    aten,
    lowers,
    operand,
    out_dtype,
    out_shape,
    promoted,
    traced,
)

_UNARY: dict[Any, str] = {
    aten.abs.default: "Abs",
    aten.atan.default: "Atan",
    aten.ceil.default: "Ceil",
    aten.cos.default: "Cos",
    aten.erf.default: "Erf",
    aten.exp.default: "Exp",
    aten.floor.default: "Floor",
    aten.isnan.default: "IsNaN",
    aten.log.default: "Log",
    aten.neg.default: "Neg",
    aten.reciprocal.default: "Reciprocal",
    aten.relu.default: "Relu",
    aten.round.default: "Round",
    aten.sigmoid.default: "Sigmoid",
    aten.sign.default: "Sign",
    aten.sin.default: "Sin",
    aten.sqrt.default: "Sqrt",
    aten.tanh.default: "Tanh",
}

_BINARY: dict[Any, str] = {
    aten.add.Tensor: "Add",
    aten.add.Scalar: "Add",
    aten.sub.Tensor: "Sub",
    aten.sub.Scalar: "Sub",
    aten.mul.Tensor: "Mul",
    aten.mul.Scalar: "Mul",
    aten.maximum.default: "Max",
    aten.minimum.default: "Min",
    aten.max.other: "Max",
    aten.min.other: "Min",
}

_COMPARE = {
    aten.eq: "Equal",
    aten.lt: "Less",
    aten.le: "LessOrEqual",
    aten.gt: "Greater",
    aten.ge: "GreaterOrEqual",
}

_LOGICAL: dict[Any, str] = {
    aten.logical_and.default: "And",
    aten.logical_or.default: "Or",
    aten.logical_xor.default: "Xor",
    aten.bitwise_and.Tensor: "And",
    aten.bitwise_or.Tensor: "Or",
    aten.bitwise_xor.Tensor: "Xor",
    aten.__and__.Tensor: "And",
    aten.__or__.Tensor: "Or",
    aten.__xor__.Tensor: "Xor",
}


@lowers(*_UNARY)
def _unary(b: OnnxBuilder, node: fx.Node, x: ir.Value) -> ir.Value:
    op_type = _UNARY[node.target]
    return b.op(op_type, x if op_type == "IsNaN" else operand(b, node, 0, x, out_dtype(node)))


@lowers(aten.rsqrt.default)
def _rsqrt(b: OnnxBuilder, node: fx.Node, x: ir.Value) -> ir.Value:
    return b.op("Reciprocal", b.op("Sqrt", operand(b, node, 0, x, out_dtype(node))))


@lowers(aten.silu.default)
def _silu(b: OnnxBuilder, node: fx.Node, x: ir.Value) -> ir.Value:
    return b.op("Mul", x, b.op("Sigmoid", x))


@lowers(aten.expm1.default)
def _expm1(b: OnnxBuilder, node: fx.Node, x: ir.Value) -> ir.Value:
    # tanh(x / 2) (exp(x) + 1): exp(x) - 1 would lose the digits of a small x.
    one, half = b.number_like(1.0, x), b.number_like(0.5, x)
    return b.op("Mul", b.op("Tanh", b.op("Mul", x, half)), b.op("Add", b.op("Exp", x), one))


@lowers(aten.gelu.default)
def _gelu(b: OnnxBuilder, node: fx.Node, x: ir.Value, approximate: str = "none") -> ir.Value:
    return b.op("Gelu", x, approximate=approximate)


@lowers(*_BINARY)
def _binary(b: OnnxBuilder, node: fx.Node, x: Any, y: Any, alpha: Any = 1) -> ir.Value:
    dtype = promoted(node, 0, 1)
    left, right = operand(b, node, 0, x, dtype), operand(b, node, 1, y, dtype)
    if alpha != 1:
        right = b.op("Mul", right, b.constant(alpha, dtype))
    return b.op(_BINARY[node.target], left, right)


@lowers(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(b: OnnxBuilder, node: fx.Node, x: Any, y: Any, alpha: Any = 1) -> ir.Value:
    dtype = promoted(node, 0, 1)
    left, right = operand(b, node, 0, x, dtype), operand(b, node, 1, y, dtype)
    if alpha != 1:
        left = b.op("Mul", left, b.constant(alpha, dtype))
    return b.op("Sub", right, left)


@lowers(aten.div.Tensor, aten.div.Scalar)
def _div(b: OnnxBuilder, node: fx.Node, x: Any, y: Any) -> ir.Value:
    dtype = out_dtype(node)
    return b.op("Div", operand(b, node, 0, x, dtype), operand(b, node, 1, y, dtype))


@lowers(aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar)
def _power(b: OnnxBuilder, node: fx.Node, x: Any, exponent: Any) -> ir.Value:
    dtype = out_dtype(node)
    base = operand(b, node, 0, x, dtype)
    if exponent == 2:
        return b.op("Mul", base, base)
    if exponent == 0.5:
        return b.op("Sqrt", base)
    return b.op("Pow", base, operand(b, node, 1, exponent, dtype))


@lowers(*(getattr(packet, kind) for packet in _COMPARE for kind in ("Tensor", "Scalar")))
def _compare(b: OnnxBuilder, node: fx.Node, x: Any, y: Any) -> ir.Value:
    dtype = promoted(node, 0, 1)
    op_type = _COMPARE[node.target.overloadpacket]  # type: ignore[union-attr]
    return b.op(op_type, operand(b, node, 0, x, dtype), operand(b, node, 1, y, dtype))


@lowers(aten.ne.Tensor, aten.ne.Scalar)
def _not_equal(b: OnnxBuilder, node: fx.Node, x: Any, y: Any) -> ir.Value:
    dtype = promoted(node, 0, 1)
    equal = b.op("Equal", operand(b, node, 0, x, dtype), operand(b, node, 1, y, dtype))
    return b.op("Not", equal)


@lowers(*_LOGICAL)
def _logical(b: OnnxBuilder, node: fx.Node, x: ir.Value, y: ir.Value) -> ir.Value:
    op_type = _LOGICAL[node.target]
    if out_dtype(node) != torch.bool:
        op_type = f"Bitwise{op_type}"
    dtype = promoted(node, 0, 1) if op_type.startswith("Bitwise") else torch.bool
    return b.op(op_type, operand(b, node, 0, x, dtype), operand(b, node, 1, y, dtype))


@lowers(aten.logical_not.default, aten.bitwise_not.default)
def _logical_not(b: OnnxBuilder, node: fx.Node, x: ir.Value) -> ir.Value:
    if out_dtype(node) != torch.bool:
        return b.op("BitwiseNot", x)
    return b.op("Not", operand(b, node, 0, x, torch.bool))


@lowers(aten.clamp.default, aten.clamp.Tensor)
def _clamp(
    b: OnnxBuilder, node: fx.Node, x: ir.Value, low: Any = None, high: Any = None
) -> ir.Value:
    dtype = out_dtype(node)
    result = operand(b, node, 0, x, dtype)
    if low is not None:
        result = b.op("Max", result, operand(b, node, 1, low, dtype))
    if high is not None:
        result = b.op("Min", result, operand(b, node, 2, high, dtype))
    return result


@lowers(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def _where(b: OnnxBuilder, node: fx.Node, condition: ir.Value, x: Any, y: Any) -> ir.Value:
    dtype = out_dtype(node)
    return choose(b, condition, operand(b, node, 1, x, dtype), operand(b, node, 2, y, dtype), dtype)


def choose(
    b: OnnxBuilder, condition: ir.Value, x: ir.Value, y: ir.Value, dtype: torch.dtype
) -> ir.Value:
    """Where; ONNX Runtime has none for booleans."""
    if dtype != torch.bool:
        return b.op("Where", condition, x, y)
    return b.op("Or", b.op("And", condition, x), b.op("And", b.op("Not", condition), y))


@lowers(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(
    b: OnnxBuilder, node: fx.Node, x: ir.Value, mask: ir.Value, number: Any
) -> ir.Value:
    dtype = out_dtype(node)
    return choose(b, mask, operand(b, node, 2, number, dtype), x, dtype)


@lowers(aten.cumsum.default)
def _cumsum(b: OnnxBuilder, node: fx.Node, x: ir.Value, dim: int, **_: Any) -> ir.Value:
    return b.op("CumSum", operand(b, node, 0, x, out_dtype(node)), b.constant(dim, torch.int64))


@lowers(aten._to_copy.default, aten.to.dtype, aten.type_as.default)
def _convert(b: OnnxBuilder, node: fx.Node, x: ir.Value, *_: Any, **__: Any) -> ir.Value:
    return operand(b, node, 0, x, out_dtype(node))


_REDUCE: dict[Any, str] = {
    aten.mean.dim: "ReduceMean",
    aten.mean.default: "ReduceMean",
    aten.sum.dim_IntList: "ReduceSum",
    aten.sum.default: "ReduceSum",
    aten.amax.default: "ReduceMax",
    aten.amin.default: "ReduceMin",
}


@lowers(*_REDUCE)
def _reduce(
    b: OnnxBuilder,
    node: fx.Node,
    x: ir.Value,
    dim: Any = None,
    keepdim: bool = False,
    dtype: Any = None,
) -> ir.Value:
    value = operand(b, node, 0, x, out_dtype(node))
    dims = [dim] if isinstance(dim, int) else dim
    axes = b.integers(dims) if dims else None
    return b.op(_REDUCE[node.target], value, axes, keepdims=int(keepdim))


@lowers(aten.var.correction, aten.std.correction)
def variance(
    b: OnnxBuilder,
    node: fx.Node,
    x: ir.Value,
    dim: Any = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> ir.Value:
    """Mean squared distance from the mean, times n / (n - correction)."""
    shape, dtype = traced(node.args[0]).shape, out_dtype(node)
    dims = [dim] if isinstance(dim, int) else (list(dim) if dim else list(range(len(shape))))
    axes = b.integers(dims)
    centred = b.op("Sub", x, b.op("ReduceMean", x, axes, keepdims=1))
    total = b.op("ReduceSum", b.op("Mul", centred, centred), axes, keepdims=int(keepdim))
    count = b.product([b.size(shape[axis]) for axis in dims])
    number = b.cast(count, dtype) if isinstance(count, ir.Value) else b.constant(count, dtype)
    rest = b.op("Sub", number, b.constant(1 if correction is None else correction, dtype))
    result = b.op("Div", total, rest)
    return b.op("Sqrt", result) if node.target is aten.std.correction else result


@lowers(aten.topk.default)
def _topk(
    b: OnnxBuilder,
    node: fx.Node,
    x: ir.Value,
    k: Any,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,
) -> tuple[ir.Value, ...]:
    count = b.op("Unsqueeze", k, b.integers([0])) if isinstance(k, ir.Value) else b.integers([k])
    return b.op_many(
        "TopK", x, count, outputs=2, axis=dim, largest=int(largest), sorted=int(sorted)
    )


@lowers(aten.sort.default, aten.sort.stable)
def _sort(
    b: OnnxBuilder,
    node: fx.Node,
    x: ir.Value,
    dim: int = -1,
    descending: bool = False,
    *,
    stable: bool = False,
) -> tuple[ir.Value, ...]:
    """TopK of all elements, which puts equal ones in their old order."""
    shape = traced(node.args[0]).shape
    count = b.shape([b.size(shape[dim])])
    return b.op_many("TopK", x, count, outputs=2, axis=dim, largest=int(descending), sorted=1)


@lowers(aten.argmax.default, aten.argmin.default)
def _arg_extremum(
    b: OnnxBuilder, node: fx.Node, x: ir.Value, dim: int | None = None, keepdim: bool = False
) -> ir.Value:
    op_type = "ArgMax" if node.target is aten.argmax.default else "ArgMin"
    if dim is None:
        x, dim = b.op("Reshape", x, b.integers([-1])), 0
    return b.op(op_type, x, axis=dim, keepdims=int(keepdim))


@lowers(aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default)
def _softmax(b: OnnxBuilder, node: fx.Node, x: ir.Value, dim: int, *_: Any, **__: Any) -> ir.Value:
    logarithmic = "log" in str(node.target)
    op_type = "LogSoftmax" if logarithmic else "Softmax"
    return b.op(op_type, operand(b, node, 0, x, out_dtype(node)), axis=dim)


@lowers(
    aten.full.default,
    aten.full_like.default,
    aten.new_full.default,
    aten.scalar_tensor.default,
)
def _full(b: OnnxBuilder, node: fx.Node, *arguments: Any, **__: Any) -> ir.Value:
    number = arguments[0] if node.target is aten.scalar_tensor.default else arguments[-1]
    return filled(b, node, number)


@lowers(
    aten.zeros.default,
    aten.zeros_like.default,
    aten.new_zeros.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.new_empty.default,
)
def _zeros(b: OnnxBuilder, node: fx.Node, *_: Any, **__: Any) -> ir.Value:
    return filled(b, node, 0)


@lowers(aten.ones.default, aten.ones_like.default, aten.new_ones.default)
def _ones(b: OnnxBuilder, node: fx.Node, *_: Any, **__: Any) -> ir.Value:
    return filled(b, node, 1)


def filled(b: OnnxBuilder, node: fx.Node, number: Any) -> ir.Value:
    """The node's shape filled with a number."""
    shape, dtype = out_shape(node), out_dtype(node)
    scalar = b.cast(number, dtype) if isinstance(number, ir.Value) else b.constant(number, dtype)
    if not shape:
        return scalar
    return b.op("Expand", scalar, b.shape([b.size(size) for size in shape]))


@lowers(aten.arange.default, aten.arange.start, aten.arange.start_step)
def _arange(b: OnnxBuilder, node: fx.Node, *bounds: Any, **__: Any) -> ir.Value:
    start, end = (0, bounds[0]) if len(bounds) == 1 else bounds[:2]
    step = bounds[2] if len(bounds) > 2 else 1
    dtype = out_dtype(node)
    whole = all(isinstance(bound, (int, float)) for bound in (start, end, step))
    if whole and math.ceil((end - start) / step) <= 1024:
        return b.constant(torch.arange(start, end, step, dtype=dtype).numpy(), dtype)
    items = [
        b.cast(item, dtype)
        if isinstance(item, ir.Value) and dtype != torch.int64
        else (item if isinstance(item, ir.Value) else b.constant(item, dtype))
        for item in (start, end, step)
    ]
    return b.op("Range", *items)


@lowers(aten.sym_size.int)
def _sym_size(b: OnnxBuilder, node: fx.Node, *_: Any) -> Any:
    return b.size(traced(node))

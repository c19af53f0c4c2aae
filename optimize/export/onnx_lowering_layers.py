"""Lowerings of layers to the single ops that ONNX Runtime has fast kernels for.

Which form is fastest on a CPU was measured, not guessed; see docs/architecture.md.
"""

from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from optimize.export.onnx_builder import OnnxBuilder
from optimize.export.onnx_lowering import aten, lowers, out_dtype, out_shape, traced
from optimize.export.onnx_lowering_tensor import expand_to


@lowers(aten.linear.default)
def linear(
    b: OnnxBuilder, node: fx.Node, x: ir.Value, weight: ir.Value, bias: ir.Value | None = None
) -> ir.Value:
    """Gemm with transB, which takes the weight [out, in] as it lies in the file."""
    shape = tuple(traced(node.args[0]).shape)
    flat = x if len(shape) == 2 else b.op("Reshape", x, b.integers([-1, shape[-1]]))
    result = b.op("Gemm", flat, weight, bias, transB=1)
    return result if len(shape) == 2 else b.reshape(result, out_shape(node))


@lowers(aten.addmm.default)
def _addmm(
    b: OnnxBuilder,
    node: fx.Node,
    bias: ir.Value,
    x: ir.Value,
    y: ir.Value,
    beta: float = 1,
    alpha: float = 1,
) -> ir.Value:
    return b.op("Gemm", x, y, bias, alpha=float(alpha), beta=float(beta))


@lowers(aten.matmul.default, aten.mm.default, aten.bmm.default)
def _matmul(b: OnnxBuilder, node: fx.Node, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.op("MatMul", x, y)


@lowers(aten.scaled_dot_product_attention.default)
def _attention(
    b: OnnxBuilder,
    node: fx.Node,
    query: ir.Value,
    key: ir.Value,
    values: ir.Value,
    mask: ir.Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> ir.Value:
    rank = len(out_shape(node))
    if mask is not None:
        mask = _whole_mask(b, node, mask)
    if rank == 3:
        axis = b.integers([1])
        query, key, values = (b.op("Unsqueeze", item, axis) for item in (query, key, values))
        if mask is not None and len(traced(node.args[3]).shape) == 3:
            mask = b.op("Unsqueeze", mask, axis)
    result = b.op("Attention", query, key, values, mask, is_causal=int(is_causal), scale=scale)
    return b.op("Squeeze", result, b.integers([1])) if rank == 3 else result


def _whole_mask(b: OnnxBuilder, node: fx.Node, mask: ir.Value) -> ir.Value:
    """The mask with every row and column: Attention broadcasts over batch and heads only."""
    shape = tuple(traced(node.args[3]).shape)
    rows, columns = traced(node.args[0]).shape[-2], traced(node.args[1]).shape[-2]
    whole = (*shape[:-2], rows, columns)
    return expand_to(b, mask, shape, whole)


@lowers(aten.layer_norm.default)
def _layer_norm(
    b: OnnxBuilder,
    node: fx.Node,
    x: ir.Value,
    normalized: list[int],
    weight: ir.Value | None = None,
    bias: ir.Value | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> ir.Value:
    if weight is None:
        weight = _ones(b, normalized, out_dtype(node))
    return b.op("LayerNormalization", x, weight, bias, axis=-len(normalized), epsilon=eps)


@lowers(aten.rms_norm.default)
def _rms_norm(
    b: OnnxBuilder,
    node: fx.Node,
    x: ir.Value,
    normalized: list[int],
    weight: ir.Value | None = None,
    eps: float | None = None,
) -> ir.Value:
    dtype = out_dtype(node)
    if weight is None:
        weight = _ones(b, normalized, dtype)
    epsilon = torch.finfo(dtype).eps if eps is None else eps
    return b.op("RMSNormalization", x, weight, axis=-len(normalized), epsilon=epsilon)


@lowers(aten.group_norm.default)
def group_norm(
    b: OnnxBuilder,
    node: fx.Node,
    x: ir.Value,
    groups: int,
    weight: ir.Value | None = None,
    bias: ir.Value | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> ir.Value:
    """Instance normalisation over [B, groups, the rest], then the affine map per channel."""
    shape, dtype = out_shape(node), out_dtype(node)
    grouped = b.op("Reshape", x, b.integers([0, groups, -1]))
    one, zero = b.constant([1.0] * groups, dtype), b.constant([0.0] * groups, dtype)
    normal = b.op("InstanceNormalization", grouped, one, zero, epsilon=eps)
    result = b.reshape(normal, shape)
    per_channel = b.integers([-1] + [1] * (len(shape) - 2))
    if weight is not None:
        result = b.op("Mul", result, b.op("Reshape", weight, per_channel))
    if bias is not None:
        result = b.op("Add", result, b.op("Reshape", bias, per_channel))
    return result


def _ones(b: OnnxBuilder, shape: list[int], dtype: torch.dtype) -> ir.Value:
    return b.op("Expand", b.constant(1.0, dtype), b.integers(shape))


@lowers(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
def _conv(
    b: OnnxBuilder,
    node: fx.Node,
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> ir.Value:
    rank = len(out_shape(node)) - 2
    return b.op(
        "Conv",
        x,
        weight,
        bias,
        strides=_per_axis(stride, rank),
        pads=_per_axis(padding, rank) * 2,
        dilations=_per_axis(dilation, rank),
        group=groups,
    )


@lowers(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
def _conv_same(
    b: OnnxBuilder,
    node: fx.Node,
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None = None,
    stride: Any = 1,
    padding: str = "valid",
    dilation: Any = 1,
    groups: int = 1,
) -> ir.Value:
    rank = len(out_shape(node)) - 2
    spacing = _per_axis(dilation, rank)
    kernel = traced(node.args[1]).shape[2:]
    total = [
        (size - 1) * step if padding == "same" else 0
        for size, step in zip(kernel, spacing, strict=True)
    ]
    # PyTorch puts the odd element of "same" padding at the end.
    pads = [size // 2 for size in total] + [size - size // 2 for size in total]
    return b.op(
        "Conv",
        x,
        weight,
        bias,
        strides=_per_axis(stride, rank),
        pads=pads,
        dilations=spacing,
        group=groups,
    )


def _per_axis(number: Any, rank: int) -> list[int]:
    numbers = [number] if isinstance(number, int) else list(number)
    return numbers * rank if len(numbers) == 1 else numbers

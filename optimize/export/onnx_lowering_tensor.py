"""Lowerings of ops that move data: views, slices, joins, copies and indexing."""

import sys
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
    same_size,
    traced,
)
from optimize.ir.graph import Size

SKIPPED = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_scalar.default,
        aten._assert_async.msg,
        aten.sym_constrain_range_for_size.default,
        aten.sym_constrain_range.default,
    }
)
"""Checks made while tracing; they compute nothing."""


@lowers(
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.view_copy.default,
)
def _view(b: OnnxBuilder, node: fx.Node, x: ir.Value, *_: Any) -> ir.Value:
    return b.reshape(x, out_shape(node))


@lowers(aten.unsqueeze.default)
def _unsqueeze(b: OnnxBuilder, node: fx.Node, x: ir.Value, dim: int) -> ir.Value:
    return b.op("Unsqueeze", x, b.integers([dim]))


@lowers(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
def _squeeze(b: OnnxBuilder, node: fx.Node, x: ir.Value, *_: Any) -> ir.Value:
    return b.reshape(x, out_shape(node))


@lowers(
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.dropout.default,
)
def _same(b: OnnxBuilder, node: fx.Node, x: ir.Value, *_: Any, **__: Any) -> ir.Value:
    return x


@lowers(aten.permute.default)
def _permute(b: OnnxBuilder, node: fx.Node, x: ir.Value, dims: list[int]) -> ir.Value:
    return b.op("Transpose", x, perm=[dim % len(dims) for dim in dims])


@lowers(aten.transpose.int, aten.t.default)
def _transpose(
    b: OnnxBuilder, node: fx.Node, x: ir.Value, first: int = 0, second: int = -1
) -> ir.Value:
    order = list(range(len(out_shape(node))))
    if not order:
        return x
    order[first], order[second] = order[second], order[first]
    return b.op("Transpose", x, perm=order)


@lowers(aten.expand.default)
def _expand(b: OnnxBuilder, node: fx.Node, x: ir.Value, *_: Any, **__: Any) -> ir.Value:
    return expand_to(b, x, tuple(traced(node.args[0]).shape), out_shape(node))


def expand_to(
    b: OnnxBuilder, x: ir.Value, shape: tuple[Size, ...], target: tuple[Size, ...]
) -> ir.Value:
    """Broadcasts `x` of `shape`; sizes it already has are given as 1, which Expand keeps."""
    padded = (1,) * (len(target) - len(shape)) + shape
    wanted = [
        1 if same_size(old, new) else b.size(new) for old, new in zip(padded, target, strict=True)
    ]
    if all(isinstance(size, int) and size == 1 for size in wanted):
        return x if len(shape) == len(target) else b.reshape(x, target)
    return b.op("Expand", x, b.shape(wanted))


def _bound(b: OnnxBuilder, bound: Any) -> ir.Value:
    if isinstance(bound, ir.Value):
        return b.op("Unsqueeze", bound, b.integers([0]))
    return b.integers([bound])


@lowers(aten.slice.Tensor)
def _slice(
    b: OnnxBuilder,
    node: fx.Node,
    x: ir.Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> ir.Value:
    start = 0 if start is None else start
    end = sys.maxsize if end is None else end
    old, new = traced(node.args[0]).shape[dim], out_shape(node)[dim]
    if step == 1 and same_size(old, new):
        return x
    axes, steps = b.integers([dim]), b.integers([step])
    return b.op("Slice", x, _bound(b, start), _bound(b, end), axes, steps)


@lowers(aten.select.int)
def _select(b: OnnxBuilder, node: fx.Node, x: ir.Value, dim: int, index: Any) -> ir.Value:
    position = index if isinstance(index, ir.Value) else b.constant(index, torch.int64)
    return b.op("Gather", x, position, axis=dim)


@lowers(aten.cat.default)
def _cat(b: OnnxBuilder, node: fx.Node, tensors: list[ir.Value], dim: int = 0) -> ir.Value:
    dtype = out_dtype(node)
    parts = []
    for source, tensor in zip(node.args[0], tensors, strict=True):  # type: ignore[arg-type]
        example = traced(source)
        # PyTorch lets an empty vector stand for "nothing" among tensors of any rank.
        if example.dim() == 1 and example.shape[0] == 0 and len(out_shape(node)) > 1:
            continue
        parts.append(tensor if example.dtype == dtype else b.cast(tensor, dtype))
    return parts[0] if len(parts) == 1 else b.op("Concat", *parts, axis=dim)


@lowers(aten.stack.default)
def _stack(b: OnnxBuilder, node: fx.Node, tensors: list[ir.Value], dim: int = 0) -> ir.Value:
    axis = b.integers([dim])
    return b.op("Concat", *(b.op("Unsqueeze", t, axis) for t in tensors), axis=dim)


@lowers(
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unsafe_split.Tensor,
    aten.split.sizes,
)
def _split(
    b: OnnxBuilder, node: fx.Node, x: ir.Value, _: Any, dim: int = 0
) -> tuple[ir.Value, ...]:
    sizes = [b.size(part.shape[dim]) for part in node.meta["val"]]
    if len(sizes) == 1:
        return (x,)
    return b.op_many("Split", x, b.shape(sizes), axis=dim, outputs=len(sizes))


@lowers(aten.unbind.int)
def _unbind(b: OnnxBuilder, node: fx.Node, x: ir.Value, dim: int = 0) -> tuple[ir.Value, ...]:
    count = len(node.meta["val"])
    return tuple(
        b.op("Gather", x, b.constant(position, torch.int64), axis=dim) for position in range(count)
    )


@lowers(aten.slice_scatter.default)
def _slice_scatter(
    b: OnnxBuilder,
    node: fx.Node,
    x: ir.Value,
    source: ir.Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> ir.Value:
    if step == 1:
        start = 0 if start is None else start
        end = sys.maxsize if end is None else end
        size = out_shape(node)[dim]
        parts = [source]
        axes = b.integers([dim])
        if start != 0:
            parts.insert(0, b.op("Slice", x, b.integers([0]), _bound(b, start), axes))
        whole = isinstance(size, int) and isinstance(end, int) and end >= size
        if not whole and end != sys.maxsize:
            parts.append(b.op("Slice", x, _bound(b, end), b.integers([sys.maxsize]), axes))
        return parts[0] if len(parts) == 1 else b.op("Concat", *parts, axis=dim)
    length = b.size(out_shape(node)[dim])
    rows = b.op(
        "Slice",
        b.range(length),
        _bound(b, start or 0),
        _bound(b, end or sys.maxsize),
        b.integers([0]),
        b.integers([step]),
    )
    rank = len(out_shape(node))
    shape = [1] * rank
    shape[dim] = -1
    rows = b.op("Expand", b.op("Reshape", rows, b.integers(shape)), b.op("Shape", source))
    return b.op("ScatterElements", x, rows, source, axis=dim)


@lowers(aten.copy.default)
def _copy(b: OnnxBuilder, node: fx.Node, _: ir.Value, source: ir.Value, *__: Any) -> ir.Value:
    value = operand(b, node, 1, source, out_dtype(node))
    return expand_to(b, value, tuple(traced(node.args[1]).shape), out_shape(node))


@lowers(aten.repeat.default)
def _repeat(b: OnnxBuilder, node: fx.Node, x: ir.Value, repeats: list[Any]) -> ir.Value:
    missing = len(repeats) - len(traced(node.args[0]).shape)
    if missing:
        x = b.op("Unsqueeze", x, b.integers(range(missing)))
    if all(isinstance(count, int) and count == 1 for count in repeats):
        return x
    return b.op("Tile", x, b.shape(repeats))


@lowers(aten.repeat_interleave.self_int)
def _repeat_interleave(
    b: OnnxBuilder, node: fx.Node, x: ir.Value, repeats: Any, dim: int | None = None, **_: Any
) -> ir.Value:
    shape = tuple(traced(node.args[0]).shape)
    if dim is None:
        x, dim, shape = b.op("Reshape", x, b.integers([-1])), 0, (0,)
    dim = dim % len(shape)
    tiles: list[Any] = [1] * (len(shape) + 1)
    tiles[dim + 1] = repeats
    tiled = b.op("Expand", b.op("Unsqueeze", x, b.integers([dim + 1])), b.shape(tiles))
    return b.reshape(tiled, out_shape(node))


@lowers(aten.embedding.default)
def _embedding(
    b: OnnxBuilder, node: fx.Node, table: ir.Value, index: ir.Value, *_: Any, **__: Any
) -> ir.Value:
    return b.op("Gather", table, index, axis=0)


@lowers(aten.index_select.default)
def _index_select(
    b: OnnxBuilder, node: fx.Node, x: ir.Value, dim: int, index: ir.Value
) -> ir.Value:
    return b.op("Gather", x, index, axis=dim)


@lowers(aten.index.Tensor)
def index(b: OnnxBuilder, node: fx.Node, x: ir.Value, indices: list[Any]) -> Any:
    """One index tensor is a Gather; adjacent ones from the first dimension on are a GatherND."""
    found = [position for position, item in enumerate(indices) if item is not None]
    sources = [traced(node.args[1][position]) for position in found]  # type: ignore[index]
    if any(source.dtype in (torch.bool, torch.uint8) for source in sources):
        return NotImplemented
    if len(found) == 1:
        return b.op("Gather", x, indices[found[0]], axis=found[0])
    if found != list(range(len(found))):
        return NotImplemented
    together = torch.broadcast_tensors(*sources)  # type: ignore[no-untyped-call]
    shape = tuple(together[0].shape)
    last = b.integers([-1])
    columns = []
    for position, source in zip(found, sources, strict=True):
        column = expand_to(b, indices[position], tuple(source.shape), shape)
        size = b.size(traced(node.args[0]).shape[position])
        rows = size if isinstance(size, ir.Value) else b.constant(size, torch.int64)
        column = b.op(
            "Where",
            b.op("Less", column, b.constant(0, torch.int64)),
            b.op("Add", column, rows),
            column,
        )
        columns.append(b.op("Unsqueeze", column, last))
    return b.op("GatherND", x, b.op("Concat", *columns, axis=-1))


@lowers(aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default)
def _upsample_nearest(b: OnnxBuilder, node: fx.Node, x: ir.Value, *_: Any) -> ir.Value:
    sizes = b.shape([b.size(size) for size in out_shape(node)])
    return b.op(
        "Resize",
        x,
        None,
        None,
        sizes,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@lowers(aten.gather.default)
def _gather(
    b: OnnxBuilder, node: fx.Node, x: ir.Value, dim: int, index: ir.Value, **_: Any
) -> ir.Value:
    return b.op("GatherElements", x, index, axis=dim)


@lowers(aten.triu.default, aten.tril.default)
def _triangle(b: OnnxBuilder, node: fx.Node, x: ir.Value, diagonal: int = 0) -> ir.Value:
    upper = int(node.target is aten.triu.default)
    return b.op("Trilu", x, b.constant(diagonal, torch.int64), upper=upper)

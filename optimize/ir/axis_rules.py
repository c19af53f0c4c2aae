"""How each op joins axes: one rule per op, found by name; `infer_axes` applies them.

A rule takes the axes known so far and a node, and returns the node's axes. To add an op, write its
rule (or put its name in one of the lists) and a row in `tests/ir/test_axis_rules.py`.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx

from optimize.ir.axes import Axes, Axis, NodeAxes, Rule, extent_of, same_extent
from optimize.ir.graph import Graph, tensor_inputs

ELEMENTWISE = """
    abs add sub rsub mul div pow neg exp log sqrt rsqrt reciprocal sin cos tanh sigmoid relu silu gelu
    erf floor ceil round clamp clamp_min clamp_max maximum minimum where masked_fill copy clone alias
    to _to_copy type_as contiguous detach lift_fresh_copy dropout leaky_relu elu softplus hardswish
    mish sign square logical_not logical_and logical_or bitwise_and bitwise_not bitwise_or __and__
    __or__ eq ne lt le gt ge fill fill_ zeros_like ones_like empty_like full_like isnan isinf fmod
    remainder floor_divide atan2 expm1 log1p log2 exp2 lerp addcmul addcdiv conj_physical real imag
    special_expm1 nan_to_num softmax _softmax log_softmax cumsum flip roll group_norm layer_norm
    rms_norm instance_norm logical_xor trunc polar complex rand_like randn_like bernoulli
""".split()
"""Ops whose output has the axes of their broadcast tensor arguments."""

CREATION = "arange full ones zeros empty scalar_tensor rand randn linspace new_zeros new_ones new_full new_empty eye tril_indices lift_fresh".split()
"""Ops whose output axes are new."""

NOT_BROADCAST = {"group_norm", "layer_norm", "rms_norm", "instance_norm"}
"""Ops whose weights follow the first argument instead of broadcasting with it."""


def infer_axes(graph: Graph) -> Axes:
    """The axes of a graph, by the rules of this module."""
    return Axes(graph, RULES)


def mixed_dimensions(node: fx.Node, operand: fx.Node) -> set[int]:
    """The dimensions of `operand` over which `node` mixes positions although the axis goes on.

    A row of the output then depends on other rows of the input: softmax over that dimension, a
    norm that includes it, a cumulative sum, a convolution, the key rows of attention.
    """
    name = _short(node)
    rank = operand.meta["val"].ndim
    if name in ("softmax", "_softmax", "log_softmax", "cumsum"):
        return {_dimension(node.args[1], rank)}
    if name in ("sort", "topk"):
        position = 1 if name == "sort" else 2
        dimension = node.args[position] if len(node.args) > position else -1
        return {_dimension(dimension, rank)}
    if name in ("flip", "roll"):
        dims = cast(Sequence[int], node.args[1 if name == "flip" else 2])
        return {_dimension(dimension, rank) for dimension in dims}
    if name in ("layer_norm", "rms_norm"):
        normalized = len(cast(Sequence[int], node.args[1]))
        return set(range(rank - normalized, rank)) if operand is node.args[0] else set()
    if name in ("group_norm", "instance_norm"):
        return set(range(1, rank))
    if name.startswith("conv"):
        return set(range(1, rank))
    return set()


def _short(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2]
    return getattr(target, "__name__", str(target))


def _dimension(dimension: Any, rank: int) -> int:
    return int(dimension) % rank if rank else 0


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _first(node: fx.Node) -> fx.Node:
    return cast(fx.Node, node.args[0])


def _fresh(axes: Axes, node: fx.Node) -> NodeAxes:
    return axes.fresh_like(node.meta["val"])


def _broadcast(axes: Axes, node: fx.Node) -> NodeAxes:
    if _short(node) in NOT_BROADCAST:
        return axes.of(_first(node))
    return broadcast_axes(axes, node, tensor_inputs(node))


def broadcast_axes(axes: Axes, node: fx.Node, operands: Sequence[fx.Node]) -> list[Axis]:
    """Joins the equal, non-1 dimensions of operands aligned at the right."""
    result = axes.fresh_like(node.meta["val"])
    rank = len(result)
    for operand in operands:
        own = axes.of(operand)
        for position, axis in enumerate(own, start=rank - len(own)):
            if same_extent(axis.extent, result[position].extent) and axis.extent != 1:
                result[position] = axes.join(result[position], axis)
    return result


def _permute(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(_first(node))
    return [own[_dimension(position, len(own))] for position in cast(Any, node.args[1])]


def _transpose(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(_first(node))
    if _short(node) == "t":
        return own[::-1]
    first, second = (_dimension(node.args[i], len(own)) for i in (1, 2))
    own[first], own[second] = own[second], own[first]
    return own


def _unsqueeze(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(_first(node))
    own.insert(_dimension(node.args[1], len(own) + 1), axes.fresh(1, 1))
    return own


def _squeeze(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(_first(node))
    rank = len(own)
    given = _argument(node, 1, "dim")
    if given is None:
        return [axis for axis in own if axis.extent != 1]
    dims = {_dimension(d, rank) for d in (given if isinstance(given, (list, tuple)) else [given])}
    return [axis for i, axis in enumerate(own) if i not in dims or axis.extent != 1]


def _reshape(axes: Axes, node: fx.Node) -> NodeAxes:
    return axes.reshaped(axes.of(_first(node)), node.meta["val"].shape)


def _expand(axes: Axes, node: fx.Node) -> NodeAxes:
    return broadcast_axes(axes, node, [_first(node)])


def _linear(axes: Axes, node: fx.Node) -> NodeAxes:
    own, weight = axes.of(_first(node)), axes.of(cast(fx.Node, node.args[1]))
    axes.join(own[-1], weight[1])
    return [*own[:-1], weight[0]]


def _addmm(axes: Axes, node: fx.Node) -> NodeAxes:
    first, second = (axes.of(cast(fx.Node, node.args[i])) for i in (1, 2))
    axes.join(first[-1], second[0])
    return [first[0], second[1]]


def _matmul(axes: Axes, node: fx.Node) -> NodeAxes:
    first, second = axes.of(_first(node)), axes.of(cast(fx.Node, node.args[1]))
    axes.join(first[-1], second[-2] if len(second) > 1 else second[0])
    result = axes.fresh_like(node.meta["val"])
    tail = [*first[-2:-1], *(second[-1:] if len(second) > 1 else [])]
    leading = len(result) - len(tail)
    for own in (first[:-2], second[:-2]):
        for position, axis in enumerate(own, start=leading - len(own)):
            if axis.extent != 1:
                result[position] = axes.join(result[position], axis)
    return [*result[:leading], *tail]


def _outer(axes: Axes, node: fx.Node) -> NodeAxes:
    return [*axes.of(_first(node)), *axes.of(cast(fx.Node, node.args[1]))]


def _einsum(axes: Axes, node: fx.Node) -> NodeAxes:
    equation, operands = cast(str, node.args[0]).replace(" ", ""), cast(Any, node.args[1])
    left, _, right = equation.partition("->")
    letters: dict[str, Axis] = {}
    for subscripts, operand in zip(left.split(","), operands, strict=True):
        for letter, axis in zip(subscripts, axes.of(operand), strict=True):
            known = letters.setdefault(letter, axis)
            if axis.extent != 1 and known.extent != 1:
                letters[letter] = axes.join(known, axis)
            elif axis.extent != 1:
                letters[letter] = axis
    return [letters[letter] for letter in right]


def _embedding(axes: Axes, node: fx.Node) -> NodeAxes:
    weight, index = axes.of(_first(node)), axes.of(cast(fx.Node, node.args[1]))
    return [*index, *weight[1:]]


def _convolution(axes: Axes, node: fx.Node) -> NodeAxes:
    own, weight = axes.of(_first(node)), axes.of(cast(fx.Node, node.args[1]))
    transposed = "transpose" in _short(node)
    result = axes.fresh_like(node.meta["val"])
    result[0] = own[0]
    if not transposed:
        result[1] = weight[0]
    return result


def _attention(axes: Axes, node: fx.Node) -> NodeAxes:
    query, key, value = (axes.of(cast(fx.Node, node.args[i])) for i in range(3))
    axes.join(key[-2], value[-2])
    axes.join(query[-1], key[-1])
    for own in (key, value):
        for i in range(len(query) - 2):
            if own[i].extent == query[i].extent and own[i].extent != 1:
                axes.join(query[i], own[i])
    mask = _argument(node, 3, "attn_mask")
    if mask is not None:
        scores = [*query[:-1], key[-2]]
        own = axes.of(mask)
        for axis, score in zip(own, scores[len(scores) - len(own) :], strict=True):
            if axis.extent != 1:
                axes.join(axis, score)
    return [*query[:-1], value[-1]]


def _cat(axes: Axes, node: fx.Node) -> NodeAxes:
    operands = [axes.of(operand) for operand in cast(Any, node.args[0])]
    operands = [own for own in operands if len(own) == node.meta["val"].ndim]
    dimension = _dimension(_argument(node, 1, "dim", 0), len(operands[0]))
    result = list(operands[0])
    for own in operands[1:]:
        for i, axis in enumerate(own):
            if i != dimension:
                result[i] = axes.join(result[i], axis) if axis.extent != 1 else result[i]
    result[dimension] = axes.concatenated([own[dimension] for own in operands])
    return result


def _stack(axes: Axes, node: fx.Node) -> NodeAxes:
    operands = [axes.of(operand) for operand in cast(Any, node.args[0])]
    result = operands[0]
    for own in operands[1:]:
        result = axes.join_all(result, own)
    dimension = _dimension(_argument(node, 1, "dim", 0), len(result) + 1)
    count = len(operands)
    return [*result[:dimension], axes.fresh(count, count), *result[dimension:]]


def _split(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(_first(node))
    dimension = _dimension(_argument(node, 2, "dim", 0), len(own))
    values = node.meta["val"]
    pieces = [axes.fresh(*extent_of(item.shape[dimension])) for item in values]
    parts = axes.divided(own[dimension], pieces, composite=True) if len(pieces) > 1 else own[dimension : dimension + 1]
    return [[*own[:dimension], part, *own[dimension + 1 :]] for part in parts]


def _unbind(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(_first(node))
    dimension = _dimension(_argument(node, 1, "dim", 0), len(own))
    rest = [axis for i, axis in enumerate(own) if i != dimension]
    return [list(rest) for _ in node.meta["val"]]


def _getitem(axes: Axes, node: fx.Node) -> NodeAxes:
    return axes.of_item(_first(node), cast(int, node.args[1]))


def _select(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(_first(node))
    del own[_dimension(node.args[1], len(own))]
    return own


def slice_bounds(node: fx.Node, position: int = 1) -> tuple[int, Any, Any, int]:
    """(dimension, start, end, step) of a `slice` or `slice_scatter`; ends clipped to the size."""
    size = _first(node).meta["val"].shape
    dimension = _dimension(_argument(node, position, "dim", 0), len(size))
    start = _argument(node, position + 1, "start")
    end = _argument(node, position + 2, "end")
    step = _argument(node, position + 3, "step", 1)

    def bound(given: Any, default: Any) -> Any:
        if isinstance(given, fx.Node):
            given = given.meta["val"]
        if given is None:
            return default
        extent = size[dimension]
        if isinstance(given, int) and isinstance(extent, int):
            return min(given + extent if given < 0 else given, extent)
        if isinstance(given, int) and given >= 2**31:
            return extent
        return given + extent if isinstance(given, int) and given < 0 else given

    return dimension, bound(start, 0), bound(end, size[dimension]), int(step)


def _part(axes: Axes, axis: Axis, start: Any, end: Any, step: int, sliced: Axis) -> Axis:
    """The part of an axis that a slice takes, or `sliced` if it is not on boundaries."""
    if step != 1:
        return sliced
    (first, _), (last, _) = extent_of(start), extent_of(end)
    if first == 0 and same_extent(last, axis.extent):
        return axis
    before, after = axes.fresh(first, extent_of(start)[1]), axis.extent - last
    rest = axes.fresh(after, axis.hint - extent_of(end)[1])
    pieces = [piece for piece in (before, sliced, rest) if piece.extent != 0]
    axes.divided(axis, pieces, composite=True)
    return axes.find(sliced)


def _slice(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(_first(node))
    dimension, start, end, step = slice_bounds(node)
    sliced = axes.fresh(*extent_of(node.meta["val"].shape[dimension]))
    own[dimension] = _part(axes, own[dimension], start, end, step, sliced)
    return own


def _slice_scatter(axes: Axes, node: fx.Node) -> NodeAxes:
    own, source = axes.of(_first(node)), axes.of(cast(fx.Node, node.args[1]))
    dimension, start, end, step = slice_bounds(node, 2)
    for i, axis in enumerate(source):
        if i != dimension and axis.extent != 1:
            axes.join(own[i], axis)
    sliced = axes.fresh(source[dimension].extent, source[dimension].hint)
    part = _part(axes, own[dimension], start, end, step, sliced)
    if step == 1:
        axes.join(part, source[dimension])
    return axes.of(_first(node))


def _select_scatter(axes: Axes, node: fx.Node) -> NodeAxes:
    own, source = axes.of(_first(node)), axes.of(cast(fx.Node, node.args[1]))
    dimension = _dimension(node.args[2], len(own))
    axes.join_all([axis for i, axis in enumerate(own) if i != dimension], source)
    return axes.of(_first(node))


def _reduce(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(_first(node))
    given = _argument(node, 1, "dim")
    rank = len(own)
    if given is None or given == []:
        dims = set(range(rank))
    else:
        listed = given if isinstance(given, (list, tuple)) else [given]
        dims = {_dimension(dimension, rank) for dimension in listed}
    keep = bool(_argument(node, 2, "keepdim", False))
    if _short(node) in ("var", "std") and "correction" in node.kwargs:
        keep = bool(node.kwargs.get("keepdim", False))
    reduced = [axes.fresh(1, 1) if i in dims else axis for i, axis in enumerate(own)]
    return reduced if keep else [axis for i, axis in enumerate(own) if i not in dims]


def _repeat(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(_first(node))
    shape = node.meta["val"].shape
    repeats = list(cast(Any, node.args[1]))
    result = [axes.fresh(*extent_of(size)) for size in shape]
    for i, axis in enumerate(own, start=len(shape) - len(own)):
        if isinstance(repeats[i], int) and repeats[i] == 1:
            result[i] = axis
        elif isinstance(repeats[i], int) and axis.extent != 1 and repeats[i] <= 64:
            result[i] = axes.concatenated([axis] * repeats[i])
    return result


def _repeat_interleave(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(_first(node))
    result = axes.fresh_like(node.meta["val"])
    dimension = _argument(node, 2, "dim")
    if dimension is None:
        return result
    return [
        fresh if i == _dimension(dimension, len(own)) else axis
        for i, (axis, fresh) in enumerate(zip(own, result, strict=True))
    ]


def _meshgrid(axes: Axes, node: fx.Node) -> NodeAxes:
    grid = [axes.of(operand)[0] for operand in cast(Any, node.args[0])]
    return [list(grid) for _ in node.meta["val"]]


def _index_select(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(_first(node))
    dimension = _dimension(node.args[1], len(own))
    own[dimension] = axes.fresh(*extent_of(node.meta["val"].shape[dimension]))
    return own


def _along(axes: Axes, node: fx.Node) -> NodeAxes:
    """Ops that change one dimension and keep the rest: gather, topk, sort, pad, interpolate."""
    own = axes.of(_first(node))

    def kept(value: torch.Tensor) -> list[Axis]:
        fresh = axes.fresh_like(value)
        return [
            axis if same_extent(axis.extent, new.extent) and i == 0 else new
            for i, (axis, new) in enumerate(zip(own, fresh, strict=True))
        ]

    value = node.meta["val"]
    return kept(value) if isinstance(value, torch.Tensor) else [kept(item) for item in value]


def _as_complex(axes: Axes, node: fx.Node) -> NodeAxes:
    return axes.of(_first(node))[:-1]


def _as_real(axes: Axes, node: fx.Node) -> NodeAxes:
    return [*axes.of(_first(node)), axes.fresh(2, 2)]


def _pixel(axes: Axes, node: fx.Node) -> NodeAxes:
    fresh = axes.fresh_like(node.meta["val"])
    fresh[0] = axes.of(_first(node))[0]
    return fresh


def _gather_rows(axes: Axes, node: fx.Node) -> NodeAxes:
    own, index = axes.of(_first(node)), axes.of(cast(fx.Node, node.args[1]))
    own[cast(int, node.args[2])] = index[1]
    own[0] = index[0] if own[0].extent == 1 else axes.join(own[0], index[0])
    return own


def _scatter_rows(axes: Axes, node: fx.Node) -> NodeAxes:
    return axes.of(_first(node))


def _table(names: str | Sequence[str], rule: Rule) -> dict[str, Rule]:
    words = names.split() if isinstance(names, str) else names
    return {f"aten::{name}": rule for name in words}


RULES: dict[str, Rule] = {
    **_table(ELEMENTWISE, _broadcast),
    **_table(CREATION, _fresh),
    **_table("permute", _permute),
    **_table("transpose t swapaxes", _transpose),
    **_table("unsqueeze", _unsqueeze),
    **_table("squeeze", _squeeze),
    **_table("view _unsafe_view reshape flatten unflatten", _reshape),
    **_table("expand expand_as broadcast_to", _expand),
    **_table("linear", _linear),
    **_table("addmm", _addmm),
    **_table("mm bmm matmul", _matmul),
    **_table("outer", _outer),
    **_table("einsum", _einsum),
    **_table("embedding", _embedding),
    **_table("conv1d conv2d conv3d conv_transpose2d convolution", _convolution),
    **_table("scaled_dot_product_attention", _attention),
    **_table("cat concat", _cat),
    **_table("stack", _stack),
    **_table("split split_with_sizes chunk", _split),
    **_table("unbind", _unbind),
    **_table("select", _select),
    **_table("slice", _slice),
    **_table("slice_scatter", _slice_scatter),
    **_table("select_scatter", _select_scatter),
    **_table("mean sum amax amin var std argmax argmin any all prod", _reduce),
    **_table("repeat", _repeat),
    **_table("repeat_interleave", _repeat_interleave),
    **_table("meshgrid", _meshgrid),
    **_table("index_select", _index_select),
    **_table("topk sort gather constant_pad_nd pad", _along),
    **_table("view_as_complex", _as_complex),
    **_table("view_as_real", _as_real),
    **_table(
        "pixel_shuffle pixel_unshuffle upsample_nearest2d upsample_bilinear2d upsample_nearest3d "
        "max_pool2d avg_pool2d adaptive_avg_pool2d",
        _pixel,
    ),
    "getitem": _getitem,
    "optimize::gather_rows": _gather_rows,
    "optimize::scatter_rows": _scatter_rows,
}

"""Axis rules of ops that move, split, join, slice or repeat dimensions."""

from typing import Any, cast

import torch
from torch import fx

from optimize.ir.axes import Axes, Axis, NodeAxes, extent_of, same_extent
from optimize.ir.node_arguments import argument, dimension_of, first_input, short_name


def permute_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(first_input(node))
    return [own[dimension_of(position, len(own))] for position in cast(Any, node.args[1])]


def transpose_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(first_input(node))
    if short_name(node) == "t":
        return own[::-1]
    first, second = (dimension_of(node.args[i], len(own)) for i in (1, 2))
    own[first], own[second] = own[second], own[first]
    return own


def unsqueeze_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(first_input(node))
    own.insert(dimension_of(node.args[1], len(own) + 1), axes.fresh(1, 1))
    return own


def squeeze_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(first_input(node))
    rank = len(own)
    given = argument(node, 1, "dim")
    if given is None:
        return [axis for axis in own if axis.extent != 1]
    dims = {dimension_of(d, rank) for d in (given if isinstance(given, (list, tuple)) else [given])}
    return [axis for i, axis in enumerate(own) if i not in dims or axis.extent != 1]


def reshape_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    return axes.reshaped(axes.of(first_input(node)), node.meta["val"].shape)


def cat_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    operands = [axes.of(operand) for operand in cast(Any, node.args[0])]
    operands = [own for own in operands if len(own) == node.meta["val"].ndim]
    dimension = dimension_of(argument(node, 1, "dim", 0), len(operands[0]))
    result = list(operands[0])
    for own in operands[1:]:
        for i, axis in enumerate(own):
            if i != dimension:
                result[i] = axes.join(result[i], axis) if axis.extent != 1 else result[i]
    result[dimension] = axes.concatenated([own[dimension] for own in operands])
    return result


def stack_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    operands = [axes.of(operand) for operand in cast(Any, node.args[0])]
    result = operands[0]
    for own in operands[1:]:
        result = axes.join_all(result, own)
    dimension = dimension_of(argument(node, 1, "dim", 0), len(result) + 1)
    count = len(operands)
    return [*result[:dimension], axes.fresh(count, count), *result[dimension:]]


def split_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(first_input(node))
    dimension = dimension_of(argument(node, 2, "dim", 0), len(own))
    values = node.meta["val"]
    pieces = [axes.fresh(*extent_of(item.shape[dimension])) for item in values]
    parts = (
        axes.divided(own[dimension], pieces, composite=True)
        if len(pieces) > 1
        else own[dimension : dimension + 1]
    )
    return [[*own[:dimension], part, *own[dimension + 1 :]] for part in parts]


def unbind_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(first_input(node))
    dimension = dimension_of(argument(node, 1, "dim", 0), len(own))
    rest = [axis for i, axis in enumerate(own) if i != dimension]
    return [list(rest) for _ in node.meta["val"]]


def getitem_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    return axes.of_item(first_input(node), cast(int, node.args[1]))


def select_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(first_input(node))
    del own[dimension_of(node.args[1], len(own))]
    return own


def slice_bounds(node: fx.Node, position: int = 1) -> tuple[int, Any, Any, int]:
    """(dimension, start, end, step) of a `slice` or `slice_scatter`; ends clipped to the size."""
    size = first_input(node).meta["val"].shape
    dimension = dimension_of(argument(node, position, "dim", 0), len(size))
    start = argument(node, position + 1, "start")
    end = argument(node, position + 2, "end")
    step = argument(node, position + 3, "step", 1)

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


def part_axes(axes: Axes, axis: Axis, start: Any, end: Any, step: int, sliced: Axis) -> Axis:
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


def slice_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(first_input(node))
    dimension, start, end, step = slice_bounds(node)
    sliced = axes.fresh(*extent_of(node.meta["val"].shape[dimension]))
    own[dimension] = part_axes(axes, own[dimension], start, end, step, sliced)
    return own


def slice_scatter_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own, source = axes.of(first_input(node)), axes.of(cast(fx.Node, node.args[1]))
    dimension, start, end, step = slice_bounds(node, 2)
    for i, axis in enumerate(source):
        if i != dimension and axis.extent != 1:
            axes.join(own[i], axis)
    sliced = axes.fresh(source[dimension].extent, source[dimension].hint)
    part = part_axes(axes, own[dimension], start, end, step, sliced)
    if step == 1:
        axes.join(part, source[dimension])
    return axes.of(first_input(node))


def select_scatter_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own, source = axes.of(first_input(node)), axes.of(cast(fx.Node, node.args[1]))
    dimension = dimension_of(node.args[2], len(own))
    axes.join_all([axis for i, axis in enumerate(own) if i != dimension], source)
    return axes.of(first_input(node))


def repeat_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(first_input(node))
    shape = node.meta["val"].shape
    repeats = list(cast(Any, node.args[1]))
    result = [axes.fresh(*extent_of(size)) for size in shape]
    for i, axis in enumerate(own, start=len(shape) - len(own)):
        if isinstance(repeats[i], int) and repeats[i] == 1:
            result[i] = axis
        elif isinstance(repeats[i], int) and axis.extent != 1 and repeats[i] <= 64:
            result[i] = axes.concatenated([axis] * repeats[i])
    return result


def repeat_interleave_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(first_input(node))
    result = axes.fresh_like(node.meta["val"])
    dimension = argument(node, 2, "dim")
    if dimension is None:
        return result
    return [
        fresh if i == dimension_of(dimension, len(own)) else axis
        for i, (axis, fresh) in enumerate(zip(own, result, strict=True))
    ]


def meshgrid_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    grid = [axes.of(operand)[0] for operand in cast(Any, node.args[0])]
    return [list(grid) for _ in node.meta["val"]]


def index_select_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(first_input(node))
    dimension = dimension_of(node.args[1], len(own))
    own[dimension] = axes.fresh(*extent_of(node.meta["val"].shape[dimension]))
    return own


def along_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    """Ops that change one dimension and keep the rest: gather, topk, sort, pad, interpolate."""
    own = axes.of(first_input(node))

    def kept(value: torch.Tensor) -> list[Axis]:
        fresh = axes.fresh_like(value)
        return [
            axis if same_extent(axis.extent, new.extent) and i == 0 else new
            for i, (axis, new) in enumerate(zip(own, fresh, strict=True))
        ]

    value = node.meta["val"]
    return kept(value) if isinstance(value, torch.Tensor) else [kept(item) for item in value]


def as_complex_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    return axes.of(first_input(node))[:-1]


def as_real_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    return [*axes.of(first_input(node)), axes.fresh(2, 2)]


def pixel_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    fresh = axes.fresh_like(node.meta["val"])
    fresh[0] = axes.of(first_input(node))[0]
    return fresh


def index_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    """One dimension picked by a vector keeps the others; anything else is new."""
    own = axes.of(first_input(node))
    result = axes.fresh_like(node.meta["val"])
    picked = [(i, item) for i, item in enumerate(cast(Any, node.args[1])) if item is not None]
    if len(picked) == 1 and picked[0][1].meta["val"].ndim == 1:
        return [result[i] if i == picked[0][0] else axis for i, axis in enumerate(own)]
    return result

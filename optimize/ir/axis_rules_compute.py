"""Axis rules of ops that compute: elementwise, products, attention, reductions."""

from collections.abc import Sequence
from typing import Any, cast

from torch import fx

from optimize.ir.axes import Axes, Axis, NodeAxes, same_extent
from optimize.ir.graph import tensor_inputs
from optimize.ir.node_arguments import argument, dimension_of, first_input, short_name

NOT_BROADCAST = {"group_norm", "layer_norm", "rms_norm", "instance_norm"}
"""Ops whose weights follow the first argument instead of broadcasting with it."""


def join_broadcast(axes: Axes, node: fx.Node, operands: Sequence[fx.Node]) -> list[Axis]:
    """Joins the equal, non-1 dimensions of operands aligned at the right."""
    result = axes.fresh_like(node.meta["val"])
    rank = len(result)
    for operand in operands:
        own = axes.of(operand)
        for position, axis in enumerate(own, start=rank - len(own)):
            if same_extent(axis.extent, result[position].extent) and axis.extent != 1:
                result[position] = axes.join(result[position], axis)
    return result


def expand_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    return join_broadcast(axes, node, [first_input(node)])


def linear_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own, weight = axes.of(first_input(node)), axes.of(cast(fx.Node, node.args[1]))
    axes.join(own[-1], weight[1])
    return [*own[:-1], weight[0]]


def addmm_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    first, second = (axes.of(cast(fx.Node, node.args[i])) for i in (1, 2))
    axes.join(first[-1], second[0])
    return [first[0], second[1]]


def matmul_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    first, second = axes.of(first_input(node)), axes.of(cast(fx.Node, node.args[1]))
    axes.join(first[-1], second[-2] if len(second) > 1 else second[0])
    result = axes.fresh_like(node.meta["val"])
    tail = [*first[-2:-1], *(second[-1:] if len(second) > 1 else [])]
    leading = len(result) - len(tail)
    for own in (first[:-2], second[:-2]):
        for position, axis in enumerate(own, start=leading - len(own)):
            if axis.extent != 1:
                result[position] = axes.join(result[position], axis)
    return [*result[:leading], *tail]


def outer_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    return [*axes.of(first_input(node)), *axes.of(cast(fx.Node, node.args[1]))]


def einsum_axes(axes: Axes, node: fx.Node) -> NodeAxes:
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


def embedding_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    weight, index = axes.of(first_input(node)), axes.of(cast(fx.Node, node.args[1]))
    return [*index, *weight[1:]]


def convolution_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own, weight = axes.of(first_input(node)), axes.of(cast(fx.Node, node.args[1]))
    transposed = "transpose" in short_name(node)
    result = axes.fresh_like(node.meta["val"])
    result[0] = own[0]
    if not transposed:
        result[1] = weight[0]
    return result


def attention_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    return _attention_axes(axes, node, argument(node, 3, "attn_mask"))


def tile_attention_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    return _attention_axes(axes, node, argument(node, 8, "mask"))


def cached_attention_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    """The output, and both caches: their rows are not the new rows, which lie somewhere in them."""
    query, key, value, *caches = (axes.of(cast(fx.Node, node.args[i])) for i in range(5))
    axes.join(query[2], key[2])
    axes.join(key[2], value[2])
    axes.join(query[3], key[3])
    for fresh, cache in zip((key, value), caches, strict=True):
        for i in (0, 1, 3):
            axes.join(fresh[i], cache[i])
        axes.join(query[0], fresh[0])
        if fresh[1].extent == query[1].extent and fresh[1].extent != 1:
            axes.join(query[1], fresh[1])
    axes.join(caches[0][2], caches[1][2])
    return [[*query[:3], value[3]], list(caches[0]), list(caches[1])]


def _attention_axes(axes: Axes, node: fx.Node, mask: fx.Node | None) -> NodeAxes:
    query, key, value = (axes.of(cast(fx.Node, node.args[i])) for i in range(3))
    axes.join(key[-2], value[-2])
    axes.join(query[-1], key[-1])
    for own in (key, value):
        for i in range(len(query) - 2):
            if own[i].extent == query[i].extent and own[i].extent != 1:
                axes.join(query[i], own[i])
    if mask is not None:
        scores = [*query[:-1], key[-2]]
        own = axes.of(mask)
        for axis, score in zip(own, scores[len(scores) - len(own) :], strict=True):
            if axis.extent != 1:
                axes.join(axis, score)
    return [*query[:-1], value[-1]]


def reduce_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own = axes.of(first_input(node))
    given = argument(node, 1, "dim")
    rank = len(own)
    if given is None or given == []:
        dims = set(range(rank))
    else:
        listed = given if isinstance(given, (list, tuple)) else [given]
        dims = {dimension_of(dimension, rank) for dimension in listed}
    keep = bool(argument(node, 2, "keepdim", False))
    if short_name(node) in ("var", "std") and "correction" in node.kwargs:
        keep = bool(node.kwargs.get("keepdim", False))
    reduced = [axes.fresh(1, 1) if i in dims else axis for i, axis in enumerate(own)]
    return reduced if keep else [axis for i, axis in enumerate(own) if i not in dims]


def gather_rows_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    own, index = axes.of(first_input(node)), axes.of(cast(fx.Node, node.args[1]))
    own[cast(int, node.args[2])] = index[1]
    own[0] = index[0] if own[0].extent == 1 else axes.join(own[0], index[0])
    return own


def scatter_rows_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    return axes.of(first_input(node))


def solver_step_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    latent, output, kept, _, pattern = cast(Any, node.args[:5])
    own = axes.of(latent)
    noise, guided = argument(node, 5, "noise"), argument(node, 6, "guidance_scale") is not None
    for column in [*kept] if noise is None else [*kept, noise]:
        own = axes.join_all(own, axes.of(column))
    prediction = axes.of(output)
    # With guidance the batch of the network is the latent's twice, as after `cat`.
    axes.join(prediction[0], axes.concatenated([own[0]] * 2) if guided else own[0])
    own = [axes.find(own[0]), *axes.join_all(own[1:], prediction[1:])]
    return [list(own) for _ in pattern.split(",")]


def fresh_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    return axes.fresh_like(node.meta["val"])


def elementwise_axes(axes: Axes, node: fx.Node) -> NodeAxes:
    if short_name(node) in NOT_BROADCAST:
        return axes.of(first_input(node))
    return join_broadcast(axes, node, tensor_inputs(node))

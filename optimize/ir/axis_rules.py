"""How each op joins axes: one rule per op, found by name; `infer_axes` applies them.

A rule takes the axes known so far and a node, and returns the node's axes. To add an op, write its
rule in `axis_rules_layout` or `axis_rules_compute` (or put its name in a list) and a row in
`tests/ir/test_axis_rules.py`.
"""

from collections.abc import Sequence
from typing import cast

from torch import fx

from optimize.ir import axis_rules_compute as compute
from optimize.ir import axis_rules_layout as layout
from optimize.ir.axes import Axes, Rule
from optimize.ir.graph import Graph
from optimize.ir.node_arguments import argument, dimension_of, short_name

ELEMENTWISE = """
    abs add sub rsub mul div pow atan neg exp log sqrt rsqrt reciprocal sin cos tanh sigmoid relu
    silu gelu erf floor ceil round clamp clamp_min clamp_max maximum minimum where masked_fill
    copy clone alias to _to_copy type_as contiguous detach lift_fresh_copy dropout leaky_relu
    elu softplus hardswish mish sign square logical_not logical_and logical_or bitwise_and
    bitwise_not bitwise_or __and__ __or__ eq ne lt le gt ge fill fill_ zeros_like ones_like
    empty_like full_like isnan isinf fmod remainder floor_divide atan2 expm1 log1p log2 exp2
    lerp addcmul addcdiv conj_physical real imag special_expm1 nan_to_num softmax _softmax
    log_softmax cumsum flip roll group_norm layer_norm rms_norm instance_norm logical_xor trunc
    polar complex rand_like randn_like bernoulli
""".split()
"""Ops whose output has the axes of their broadcast tensor arguments."""

CREATION = """
    arange full ones zeros empty scalar_tensor rand randn linspace new_zeros new_ones new_full
    new_empty eye tril_indices lift_fresh
""".split()
"""Ops whose output axes are new."""


def infer_axes(graph: Graph) -> Axes:
    """The axes of a graph, by the rules of this module."""
    return Axes(graph, RULES)


def mixed_dimensions(node: fx.Node, operand: fx.Node) -> set[int]:
    """The dimensions of `operand` over which `node` mixes positions although the axis goes on.

    A row of the output then depends on other rows of the input: softmax over that dimension, a
    norm that includes it, a cumulative sum, a convolution, the key rows of attention.
    """
    name = short_name(node)
    rank = operand.meta["val"].ndim
    if name in ("softmax", "_softmax", "log_softmax", "cumsum"):
        return {dimension_of(node.args[1], rank)}
    if name in ("sort", "topk"):
        position = 1 if name == "sort" else 2
        dimension = node.args[position] if len(node.args) > position else -1
        return {dimension_of(dimension, rank)}
    if name in ("flip", "roll"):
        dims = cast(Sequence[int], node.args[1 if name == "flip" else 2])
        return {dimension_of(dimension, rank) for dimension in dims}
    if name in ("layer_norm", "rms_norm"):
        normalized = len(cast(Sequence[int], node.args[1]))
        return set(range(rank - normalized, rank)) if operand is node.args[0] else set()
    if name in ("group_norm", "instance_norm", "dynamic_threshold"):
        return set(range(1, rank))
    if name.startswith("conv"):
        return set(range(1, rank))
    if name in ("mm", "bmm", "matmul"):
        return {rank - 1 if operand is node.args[0] else max(0, rank - 2)}
    if name in ("index", "index_select", "gather", "scatter"):
        return set(range(1, rank)) if operand is node.args[0] else set()
    if name == "tile_attention":
        return {rank - 1 if operand is argument(node, 8, "mask") else rank - 2}
    return set()


def _table(names: str | Sequence[str], rule: Rule) -> dict[str, Rule]:
    words = names.split() if isinstance(names, str) else names
    return {f"aten::{name}": rule for name in words}


RULES: dict[str, Rule] = {
    **_table(ELEMENTWISE, compute.elementwise_axes),
    **_table(CREATION, compute.fresh_axes),
    **_table("permute", layout.permute_axes),
    **_table("transpose t swapaxes", layout.transpose_axes),
    **_table("unsqueeze", layout.unsqueeze_axes),
    **_table("squeeze", layout.squeeze_axes),
    **_table("view _unsafe_view reshape flatten unflatten", layout.reshape_axes),
    **_table("expand expand_as broadcast_to", compute.expand_axes),
    **_table("linear", compute.linear_axes),
    **_table("addmm", compute.addmm_axes),
    **_table("mm bmm matmul", compute.matmul_axes),
    **_table("outer", compute.outer_axes),
    **_table("einsum", compute.einsum_axes),
    **_table("embedding", compute.embedding_axes),
    **_table("conv1d conv2d conv3d conv_transpose2d convolution", compute.convolution_axes),
    **_table("scaled_dot_product_attention", compute.attention_axes),
    **_table("cat concat", layout.cat_axes),
    **_table("stack", layout.stack_axes),
    **_table("split split_with_sizes chunk", layout.split_axes),
    **_table("unbind", layout.unbind_axes),
    **_table("select", layout.select_axes),
    **_table("slice", layout.slice_axes),
    **_table("slice_scatter", layout.slice_scatter_axes),
    **_table("select_scatter", layout.select_scatter_axes),
    **_table(
        "mean sum amax amin var std argmax argmin any all prod logsumexp", compute.reduce_axes
    ),
    **_table("repeat", layout.repeat_axes),
    **_table("repeat_interleave", layout.repeat_interleave_axes),
    **_table("meshgrid", layout.meshgrid_axes),
    **_table("index_select", layout.index_select_axes),
    **_table("index", layout.index_axes),
    **_table("topk sort gather constant_pad_nd pad", layout.along_axes),
    **_table("scatter", compute.scatter_rows_axes),
    **_table("view_as_complex", layout.as_complex_axes),
    **_table("view_as_real", layout.as_real_axes),
    **_table(
        "pixel_shuffle pixel_unshuffle upsample_nearest2d upsample_bilinear2d upsample_nearest3d "
        "max_pool2d avg_pool2d adaptive_avg_pool2d",
        layout.pixel_axes,
    ),
    "getitem": layout.getitem_axes,
    "optimize::cached_attention": compute.cached_attention_axes,
    "optimize::dynamic_threshold": compute.elementwise_axes,
    "optimize::gather_rows": compute.gather_rows_axes,
    "optimize::scatter_rows": compute.scatter_rows_axes,
    "optimize::solver_step": compute.solver_step_axes,
    "optimize::tile_attention": compute.tile_attention_axes,
}

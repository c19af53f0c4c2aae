"""Which axis of a denoiser counts its tokens."""

from typing import cast

import torch
from torch import fx

from optimize.ir.axes import Axes, Axis, op_name
from optimize.ir.axis_rules import infer_axes
from optimize.ir.errors import InputModelError
from optimize.ir.graph import Graph, tensor_inputs
from optimize.ir.node_arguments import argument

SDPA = torch.ops.aten.scaled_dot_product_attention.default
MASK_ARGUMENT = {
    "aten::scaled_dot_product_attention": (3, "attn_mask"),
    "optimize::tile_attention": (8, "mask"),
}
"""Attention op, which begins with query, key and value [B, N, S, D] → where its mask stands."""


class CannotSubset(InputModelError):
    """A graph that cannot run on some rows only; the message is the reason a pass reports."""


def token_axis(graph: Graph, axes: Axes) -> Axis:
    """The axis of the rows that self-attention mixes and that come from the latent.

    Raises:
        CannotSubset: no self-attention over rows of the latent, or over several kinds of rows.
    """
    found: list[Axis] = []
    for node in graph.graph.nodes:
        if not is_attention(node):
            continue
        query, key = (axes.of(cast(fx.Node, node.args[i]))[-2] for i in (0, 1))
        if axes.find(query) is not axes.find(key):
            continue
        for part in axes.parts(query):
            if part not in found and born_from_latent(graph, axes, part):
                found.append(part)
    if not found:
        raise CannotSubset("found no self-attention over tokens of the latent")
    if len(found) > 1:
        sizes = ", ".join(str(axis.extent) for axis in found)
        raise CannotSubset(f"found {len(found)} token axes of sizes {sizes}, expected one")
    return found[0]


def token_count(graph: Graph) -> int:
    """How many tokens a denoiser has, whatever the request.

    Raises:
        CannotSubset: it has no token axis, or their number is not fixed.
    """
    tokens = token_axis(graph, infer_axes(graph))
    if not isinstance(tokens.extent, int):
        raise CannotSubset(f"the number of tokens is {tokens.extent}, expected a fixed one")
    return tokens.extent


def born_from_latent(graph: Graph, axes: Axes, axis: Axis) -> bool:
    """Whether some node computed from the latent carries the axis although no input of it does."""
    for node in descendants(graph.node("latent")):
        if axes.is_tensor(node) and op_name(node) != "getitem" and axes.carrying(node, axis):
            sources = [item for item in tensor_inputs(node) if axes.carrying(item, axis)]
            if not sources:
                return True
    return False


def is_attention(node: fx.Node) -> bool:
    """Whether a node is attention of query rows over key rows."""
    return node.op == "call_function" and op_name(node) in MASK_ARGUMENT


def mask_of(node: fx.Node) -> fx.Node | None:
    """The mask of an attention node."""
    mask: fx.Node | None = argument(node, *MASK_ARGUMENT[op_name(node)])
    return mask


def ancestors(node: fx.Node, *, sizes: bool = True) -> set[fx.Node]:
    """A node and everything it is computed from; `sizes` says whether sizes count."""
    found = {node}
    stack = [node]
    while stack:
        for item in stack.pop().all_input_nodes:
            counts = sizes or not isinstance(item.meta.get("val"), torch.SymInt)
            if item not in found and counts:
                found.add(item)
                stack.append(item)
    return found


def descendants(node: fx.Node) -> set[fx.Node]:
    """A node and everything computed from it."""
    found = {node}
    stack = [node]
    while stack:
        for user in stack.pop().users:
            if user not in found:
                found.add(user)
                stack.append(user)
    return found

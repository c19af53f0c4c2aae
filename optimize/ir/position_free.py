"""Queries and keys as they would be without rotary positions, whatever way a model rotates.

Nodes that the table of positions reaches on another way than through a layer's hidden states are
copied with all positions zero: rotation by any frequencies is the identity there.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import fx

from optimize.ir.builder import Builder
from optimize.ir.decode import PROMPT_POSITIONS
from optimize.ir.graph import Graph
from optimize.ir.layer_inputs import Layer
from optimize.kernels.gather_rows import schema as _gather_schema  # noqa: F401  registers the op


def position_nodes(graph: Graph, layer: Layer) -> set[fx.Node]:
    """The nodes that give positions to the queries and keys of a layer; none without rotary.

    Learned positions, added to the embeddings, come through the hidden states and are not meant.
    """
    reached: set[fx.Node] = set()
    stack = [node for node in graph.graph.nodes if _is_table(graph, node)]
    while stack:
        for user in stack.pop().users:
            # How many rows there are does not depend on where they stand.
            sized = isinstance(user.meta.get("val"), torch.SymInt)
            if user is not layer.hidden and user not in reached and not sized:
                reached.add(user)
                stack.append(user)
    needed: set[fx.Node] = set()
    stack = [cast(fx.Node, item) for item in layer.site.args[:2]]
    while stack:
        node = stack.pop()
        if node in reached and node not in needed:
            needed.add(node)
            # An index of kept rows says which positions are meant, and is none itself.
            picks = node.target is torch.ops.optimize.gather_rows.default
            stack.extend(node.all_input_nodes[:1] if picks else node.all_input_nodes)
    return needed


def without_positions(
    builder: Builder, copies: Callable[[fx.Node], fx.Node], graph: Graph, layer: Layer
) -> tuple[fx.Node, fx.Node]:
    """The query and key of a layer as if all rows stood at position 0.

    Args:
        builder: where the nodes go; it has everything up to the layer's attention already.
        copies: node of the graph → its copy there.
    """
    moved = position_nodes(graph, layer)
    made: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        if node not in moved:
            continue
        if any(_is_table(graph, item) for item in node.all_input_nodes):
            made[node] = builder.call(torch.ops.aten.mul.Tensor, copies(node), 0)
        else:
            made[node] = builder.graph.node_copy(node, lambda old: made.get(old) or copies(old))
            made[node].meta = dict(node.meta)
    query, key = (cast(fx.Node, item) for item in layer.site.args[:2])
    return made.get(query) or copies(query), made.get(key) or copies(key)


def _is_table(graph: Graph, node: fx.Node) -> bool:
    return graph.weights.get(node.name) == PROMPT_POSITIONS

"""Where the layers of a decoder begin, found in its graph: the cuts that all rows pass through."""

from dataclasses import dataclass
from typing import cast

import networkx as nx
import torch
from torch import fx

from optimize.ir.axes import Axes, Axis
from optimize.ir.errors import InputModelError
from optimize.ir.graph import Graph, tensor_inputs
from optimize.ir.token_axis import SDPA, ancestors, descendants

POSITIONS = "positions"
"""The input of a decoder graph that says where its rows stand."""


@dataclass(frozen=True)
class Layer:
    """One self-attention site and the hidden states that it and its residual start from.

    Attributes:
        site: the `scaled_dot_product_attention` node.
        hidden: [B, S, D]; nothing of the rows before it reaches the site or the output otherwise.
    """

    site: fx.Node
    hidden: fx.Node


def decoder_layers(graph: Graph, axes: Axes, output: str = "logits") -> tuple[Layer, ...]:
    """The layers of a graph, in order.

    The input of a layer is a cut: it dominates both the queries of the site and the output. The
    last such node is meant, so that the perceptron of the layer before lies before it.

    Args:
        graph: one whose rows attend to one another.
        axes: its axes.
        output: whose values the rows end in.
    Raises:
        InputModelError: the rows come from several places, or a layer has no such cut.
    """
    sites = [node for node in graph.graph.nodes if node.target is SDPA]
    if not sites:
        raise InputModelError("found no scaled_dot_product_attention, expected one per layer")
    rows = axes.of(cast(fx.Node, sites[0].args[0]))[-2]
    source = _birth(graph, axes, rows, sites[0])
    # Whole numbers, such as indices of kept rows, carry no row's values.
    inside = {node for node in descendants(source) if _is_real(node)}
    flow = nx.DiGraph()
    flow.add_node(source)
    for node in inside:
        flow.add_edges_from((item, node) for item in node.all_input_nodes if item in inside)
    dominators = nx.immediate_dominators(flow, source)
    cuts = _chain(dominators, source, graph.output_nodes()[output])
    layers = []
    for site in sites:
        query = cast(fx.Node, site.args[0])
        common = set(_chain(dominators, source, query)) & set(cuts)
        if not common:
            raise InputModelError(
                f"site {site.name}: found no node that all rows pass through before it, expected "
                "the hidden states of a layer"
            )
        layers.append(Layer(site, max(common, key=cuts.index)))
    return tuple(layers)


def _birth(graph: Graph, axes: Axes, rows: Axis, site: fx.Node) -> fx.Node:
    """The one node that makes the rows: the embeddings, text and image joined."""
    query = cast(fx.Node, site.args[0])
    before = ancestors(query, sizes=False)
    born = [
        node
        for node in graph.graph.nodes
        if node in before
        and axes.is_tensor(node)
        and node.meta["val"].ndim == 3
        and _is_real(node)
        and axes.carrying(node, rows)
        and not any(
            axes.carrying(item, rows)
            for item in tensor_inputs(node)
            if item in before and _is_real(item)
        )
        and not _says_nothing_of_tokens(graph, node)
    ]
    if len(born) != 1:
        raise InputModelError(
            f"found {len(born)} places where the rows of the sequence are made, expected one"
        )
    (node,) = born
    return cast(fx.Node, node)


def _is_real(node: fx.Node) -> bool:
    """Whether a node computes real numbers; a split does, in several tensors."""
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    return isinstance(value, torch.Tensor) and bool(value.is_floating_point())


def _says_nothing_of_tokens(graph: Graph, node: fx.Node) -> bool:
    """Whether a node is computed from weights, sizes and positions only, as rotary tables are."""
    return not any(
        item.op == "placeholder" and item.name not in graph.weights and item.name != POSITIONS
        for item in ancestors(node, sizes=False)
    )


def _chain(dominators: dict[fx.Node, fx.Node], source: fx.Node, node: fx.Node) -> list[fx.Node]:
    """The nodes every path from the source to a node goes through, from the source on."""
    chain = [node]
    while chain[-1] is not source:
        chain.append(dominators[chain[-1]])
    return chain[::-1]

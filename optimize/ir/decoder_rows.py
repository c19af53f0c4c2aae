"""Runs a decoder within a graph that is being built, with other attention and on rows of its own.

    hidden, logits = decoder_rows(builder, decoder, tokens, positions, attend)

`decoder` is one as of `Program.decoder`: traced for any number of rows, whose sites are causal by
themselves. Every node is evaluated anew, so the number of rows may be fixed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import fx

from optimize.ir.builder import Builder
from optimize.ir.errors import InputModelError
from optimize.ir.graph import Graph, tensor_inputs
from optimize.ir.node_arguments import product_of
from optimize.ir.token_axis import SDPA

aten = torch.ops.aten

Attend = Callable[[int, fx.Node, fx.Node, fx.Node, float | None], fx.Node]
"""(layer, query, key, value, scale) → attended rows [B, N, S, Dv]."""

Choose = Callable[[fx.Node], fx.Node]
"""Hidden states [B, S, H] → those [B, R, H] that the output layer runs on."""


@dataclass(frozen=True)
class OutputLayer:
    """What turns hidden states into logits.

    Attributes:
        hidden: the node [B, S, H] that it reads, behind the last norm.
        product: the node that multiplies them with the matrix of the vocabulary.
    """

    hidden: fx.Node
    product: fx.Node


def output_layer(decoder: Graph) -> OutputLayer:
    """Finds the output layer of a decoder: the last product with a weight.

    Raises:
        InputModelError: the logits do not come from one.
    """
    node = decoder.output_nodes()["logits"]
    while node.op == "call_function":
        product = product_of(node)
        if product is not None:
            return OutputLayer(product[0], node)
        inputs = [item for item in tensor_inputs(node) if item.name not in decoder.weights]
        if len(inputs) != 1:
            break
        (node,) = inputs
    raise InputModelError(
        "decoder: found logits that do not come from a product with a weight, expected an output "
        "layer; capture the model with its language-model head"
    )


def decoder_rows(
    builder: Builder,
    decoder: Graph,
    tokens: fx.Node,
    positions: fx.Node,
    attend: Attend,
    choose: Choose | None = None,
) -> tuple[fx.Node, fx.Node]:
    """Copies a decoder into a graph.

    Args:
        tokens, positions: [B, S] int64.
        attend: makes the attention of a site.
        choose: picks the rows that need logits; None for all.
    Returns:
        The hidden states [B, S, H] before the output layer, and the logits.
    """
    hidden = output_layer(decoder).hidden
    kept: dict[str, fx.Node] = {}

    def site(layer: int) -> Callable[..., fx.Node]:
        def make(query: Any, key: Any, value: Any, *_: Any, **given: Any) -> fx.Node:
            return attend(layer, query, key, value, given.get("scale"))

        return make

    def states(*args: Any, **kwargs: Any) -> fx.Node:
        kept["all"] = builder.call(cast(Callable[..., Any], hidden.target), *args, **kwargs)
        return kept["all"] if choose is None else choose(kept["all"])

    sites = [node for node in decoder.graph.nodes if node.target is SDPA]
    instead: dict[fx.Node, Callable[..., fx.Node]] = {
        node: site(layer) for layer, node in enumerate(sites)
    }
    instead[hidden] = states
    arguments = {"input_ids": tokens, "positions": positions}
    mapping = builder.inlined_nodes(decoder, arguments, evaluate=True, instead=instead)
    return kept["all"], mapping[decoder.output_nodes()["logits"]]


def site_count(decoder: Graph) -> int:
    """How many layers a decoder has."""
    return sum(node.target is SDPA for node in decoder.graph.nodes)


def with_prefix(decoder: Graph, prefix: str) -> Graph:
    """The decoder with other names of its weights, to stand beside another one."""
    return replace(decoder, weights={node: prefix + name for node, name in decoder.weights.items()})

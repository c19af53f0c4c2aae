"""How wide the layers of a decoder are, read from the matrices between two attention sites."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import fx

from optimize.ir.axis_rules import infer_axes
from optimize.ir.graph import Graph, hint, shape
from optimize.ir.layer_inputs import Layer, decoder_layers
from optimize.ir.node_arguments import product_of
from optimize.ir.token_axis import ancestors, descendants


@dataclass(frozen=True)
class LayerWidths:
    """The sizes that the work of a layer depends on.

    Attributes:
        width: of the hidden states.
        perceptron: of its inner values.
        gated: whether the perceptron has three matrices, a gate among them, or two.
    """

    width: int
    perceptron: int
    gated: bool


def layer_widths(graph: Graph) -> LayerWidths | None:
    """The sizes of the layers; None where layers differ or are built in another way.

    The last layer is not looked at: its matrices cannot be told from those of the output.

    Raises:
        InputModelError: the layers cannot be told apart.
    """
    layers = decoder_layers(graph, infer_axes(graph))
    found = {_widths(layer, following) for layer, following in pairwise(layers)}
    return found.pop() if len(found) == 1 else None


def _widths(layer: Layer, following: Layer) -> LayerWidths | None:
    after = descendants(layer.hidden)
    before = ancestors(following.hidden, sizes=False)
    products = [
        node
        for node in layer.hidden.graph.nodes
        if node in after and node in before and _has_weights(node, after)
    ]
    attention = ancestors(layer.site, sizes=False) | _first_products(layer.site, products)
    perceptron = [_matrix(node) for node in products if node not in attention]
    width = hint(shape(layer.hidden)[-1])
    if not perceptron:
        return None
    inner = perceptron[-1][0]
    matrices = sum(math.prod(matrix) for matrix in perceptron) / (width * inner)
    return LayerWidths(width, inner, matrices == 3) if matrices in (2, 3) else None


def _has_weights(node: fx.Node, after: set[fx.Node]) -> bool:
    """Whether a node multiplies rows of the layer with something that is not of the layer."""
    product = product_of(node)
    return product is not None and product[0] in after and product[1] not in after


def _matrix(product: fx.Node) -> tuple[int, int]:
    """How many values go into a product and come out of it, per row."""
    found = product_of(product)
    assert found is not None
    return hint(shape(found[0])[-1]), hint(shape(product)[-1])


def _first_products(site: fx.Node, products: Sequence[fx.Node]) -> set[fx.Node]:
    """The products that attention goes through first: its output projection."""
    found: set[fx.Node] = set()
    seen = {site}
    stack = [site]
    while stack:
        for user in stack.pop().users:
            if user in products:
                found.add(user)
            elif user not in seen:
                seen.add(user)
                stack.append(user)
    return found

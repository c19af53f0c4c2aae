"""Whether a graph multiplies its weights with few rows at a time, as decoding does."""

from torch import fx

from optimize.ir.graph import Graph, hint, numel, shape
from optimize.ir.node_arguments import product_of
from optimize.ir.spec import traced_sizes

FEW = 32
"""Most rows, for one sample, for which ONNX Runtime is much faster with repacked weights."""


def has_few_rows(graph: Graph) -> bool:
    """Whether no product of a weight matrix has more than `FEW` rows for each sample."""
    batch = traced_sizes(graph).get(graph.dimensions.get("batch", ""), 1)
    rows = [count / batch for node in graph.graph.nodes if (count := _rows(graph, node))]
    return bool(rows) and max(rows) <= FEW


def _rows(graph: Graph, node: fx.Node) -> int:
    """Rows that a node multiplies with a weight matrix; 0 if it does not."""
    product = product_of(node)
    if product is None:
        return 0
    left, right = product
    if right.name not in graph.weights or len(shape(right)) != 2:
        return 0
    return numel(shape(left)) // hint(shape(left)[-1])

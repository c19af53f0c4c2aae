"""Matrix products over flattened rows as products over rows, which keep batch and rows apart.

flat = view(x, [-1, K])                        y = add(matmul(x, weight), bias)
y = view(addmm(bias, flat, weight), [B, S, N])   ───▶
"""

from typing import cast

import torch
from torch import fx

from optimize.ir.builder import builder_with_inputs
from optimize.ir.graph import Graph, Size, shape

aten = torch.ops.aten
VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


def unflattened(graph: Graph) -> Graph:
    """The graph with every such product over rows; itself where there is none."""
    found = [node for node in graph.graph.nodes if _gives_back_rows(node)]
    if not found:
        return graph
    builder, arguments = builder_with_inputs(graph)

    def over_rows(product: fx.Node, *_: object) -> fx.Node:
        bias, flat, weight = (cast(fx.Node, item) for item in product.args)
        made = builder.call(aten.matmul.default, flat.args[0], weight)
        return builder.call(aten.add.Tensor, made, bias)

    mapping = builder.inlined_nodes(graph, arguments, instead=dict.fromkeys(found, over_rows))
    outputs = {name: mapping[node] for name, node in graph.output_nodes().items()}
    return builder.finish(outputs, graph.dimensions)


def _gives_back_rows(node: fx.Node) -> bool:
    """Whether a view takes a product of flattened rows apart into the rows [..., K] it had."""
    product = _viewed(node)
    if product is None or product.target is not aten.addmm.default or product.kwargs:
        return False
    flat = cast(fx.Node, product.args[1])
    rows = _viewed(flat)
    if rows is None or len(shape(flat)) != 2:
        return False
    same = _equal(shape(rows)[:-1], shape(node)[:-1]) and shape(rows)[-1] == shape(flat)[-1]
    return same and shape(node)[-1] == shape(product)[-1]


def _viewed(node: fx.Node) -> fx.Node | None:
    is_view = node.op == "call_function" and node.target in VIEWS
    return cast(fx.Node, node.args[0]) if is_view else None


def _equal(first: tuple[Size, ...], second: tuple[Size, ...]) -> bool:
    return [str(size) for size in first] == [str(size) for size in second]

"""Matrix products over flattened rows as products over rows, which keep batch and rows apart.

flat = view(x, [-1, K])                        y = add(matmul(x, weight), bias)
y = view(addmm(bias, flat, weight), [B, S, N])   ───▶
"""

from typing import cast

import torch
from torch import fx

from optimize.ir.builder import Builder, fake_mode_of
from optimize.ir.graph import Graph, Size, shape

aten = torch.ops.aten
VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


def unflattened(graph: Graph) -> Graph:
    """The graph with every such product over rows; itself where there is none."""
    found = [node for node in graph.graph.nodes if _source(node) is not None]
    if not found:
        return graph
    builder = Builder(fake_mode_of(graph))
    arguments = {name: builder.input(name, graph.node(name).meta["val"]) for name in graph.inputs}
    mapping: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        source = _source(node)
        if node.op == "placeholder" and node.name in graph.weights:
            mapping[node] = builder.weight(graph.weights[node.name], node.meta["val"])
        elif node.op == "placeholder":
            mapping[node] = arguments[node.name]
        elif source is not None:
            product = cast(fx.Node, node.args[0])
            bias, _, weight = (mapping[cast(fx.Node, item)] for item in product.args)
            made = builder.call(aten.matmul.default, mapping[source], weight)
            mapping[node] = builder.call(aten.add.Tensor, made, bias)
            mapping[node].meta["stack_trace"] = node.meta.get("stack_trace")
        elif node.op == "call_function":
            mapping[node] = builder.copy(node, mapping, evaluate=False)
    outputs = {name: mapping[node] for name, node in graph.output_nodes().items()}
    return builder.finish(outputs, graph.dimensions)


def _source(node: fx.Node) -> fx.Node | None:
    """The rows [..., K] whose product this view gives back unflattened."""
    product = _viewed(node)
    if product is None or product.target is not aten.addmm.default or product.kwargs:
        return None
    flat = cast(fx.Node, product.args[1])
    rows = _viewed(flat)
    if rows is None or len(shape(flat)) != 2:
        return None
    same = _equal(shape(rows)[:-1], shape(node)[:-1]) and shape(rows)[-1] == shape(flat)[-1]
    return rows if same and shape(node)[-1] == shape(product)[-1] else None


def _viewed(node: fx.Node) -> fx.Node | None:
    is_view = node.op == "call_function" and node.target in VIEWS
    return cast(fx.Node, node.args[0]) if is_view else None


def _equal(first: tuple[Size, ...], second: tuple[Size, ...]) -> bool:
    return [str(size) for size in first] == [str(size) for size in second]

"""What the prefill of a decoder costs, by formula and as counted, and what its caches take."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from optimize.ir.graph import Graph, Size
from optimize.ir.key_value_slots import CACHE
from optimize.ir.layer_widths import LayerWidths
from optimize.ir.torch_engine import TORCH_DTYPES
from optimize.measure.cost import graph_flops
from optimize.runtime.loop import Loop


def layer_cost(tokens: float, widths: LayerWidths) -> float:
    """C(n) = 4 n d² + 2 n² d + 2 n d m, or 3 n d m with a gate, in multiply-adds.

    The formula of the literature: as if keys and values were as many as queries, and every token
    attended to every token.
    """
    n, d, m = tokens, widths.width, widths.perceptron
    return 4.0 * n * d**2 + 2.0 * n**2 * d + (3.0 if widths.gated else 2.0) * n * d * m


def tokens_by_layer(
    tokens: float, kept: Sequence[float], cuts: Sequence[int], layers: int
) -> list[float]:
    """How many image tokens each layer has.

    Args:
        tokens: of the image.
        kept: how many are left after each cut.
        cuts: the first layers with fewer tokens, ascending, one per number of `kept`.
        layers: of the decoder.
    """
    edges = [0, *cuts, layers]
    lengths = [last - first for first, last in pairwise(edges)]
    counts = zip((tokens, *kept), lengths, strict=True)
    return [count for count, length in counts for _ in range(length)]


def cache_bytes(loop: Loop, rows: Sequence[int] | None = None) -> int:
    """Bytes of the key-value caches of one sample.

    Args:
        loop: its slots `key_i` and `value_i` are [batch, G, capacity, D].
        rows: that are held in each layer; None for the whole capacity.
    """
    total = 0
    for slot in loop.slots:
        found = CACHE.fullmatch(slot.name)
        if found is None:
            continue
        _, groups, capacity, width = (item if isinstance(item, int) else 1 for item in slot.shape)
        held = capacity if rows is None else rows[int(found[2])]
        total += groups * held * width * TORCH_DTYPES[slot.dtype].itemsize
    return total


def flops_at(graph: Graph, sizes: Mapping[str, int]) -> float:
    """Floating-point operations of one call of a graph at other sizes than it was traced at.

    Args:
        graph: any.
        sizes: of each of its named dimensions.
    """
    symbols = {symbol: sizes[name] for name, symbol in graph.dimensions.items()}
    new = graph.copied()
    values: dict[fx.Node, Any] = {}
    with FakeTensorMode():
        for node in new.graph.nodes:
            if node.op == "placeholder":
                old = node.meta["val"]
                shape = [_size(size, symbols) for size in old.shape]
                node.meta["val"] = torch.empty(shape, dtype=old.dtype, device=old.device)
            elif node.op == "call_function":
                args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
                node.meta["val"] = node.target(*args, **kwargs)
            values[node] = node.meta.get("val")
    return graph_flops(new)


def _size(size: Size, symbols: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    known = {symbol: symbols[str(symbol)] for symbol in expression.free_symbols}
    return int(expression.xreplace(known))

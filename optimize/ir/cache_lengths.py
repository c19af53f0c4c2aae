"""Shortens the caches of a decode graph's later layers, to those a pruned prefill has filled.

cached_attention(q, k, v, key_5, value_5, rows)
    ───▶    cached_attention(q, k, v, key_5, value_5, rows - dropped_1)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx

from optimize.ir.builder import Builder, fake_mode_of
from optimize.ir.graph import Graph, shape
from optimize.ir.key_value_slots import CACHE
from optimize.kernels.cached_attention import schema as _schema  # noqa: F401  registers the op

aten = torch.ops.aten
CACHED = torch.ops.optimize.cached_attention.default


@dataclass(frozen=True)
class Cut:
    """Where the caches of a program become shorter.

    Attributes:
        layer: the first one with fewer rows.
        dropped: name of the slot [B] int64 that counts the rows that are not in the caches.
        capacity: rows of the caches from this layer on.
    """

    layer: int
    dropped: str
    capacity: int


def with_shorter_caches(graph: Graph, cuts: Sequence[Cut]) -> Graph:
    """A decode graph whose layers find the rows that are left at their own places.

    Args:
        graph: with the inputs `rows`, and `key_i` and `value_i` of each layer.
        cuts: in the order of their layers.
    """

    def cut_of(layer: int) -> Cut | None:
        return next((cut for cut in reversed(cuts) if layer >= cut.layer), None)

    builder = Builder(fake_mode_of(graph))
    arguments: dict[str, fx.Node] = {}
    for name in graph.inputs:
        value = graph.node(name).meta["val"]
        found = CACHE.fullmatch(name)
        cut = cut_of(int(found[2])) if found else None
        if cut is not None:
            batch, groups, _, width = shape(graph.node(name))
            value = builder.fake((batch, groups, cut.capacity, width), value.dtype)
        arguments[name] = builder.input(name, value)
    lengths = {}
    for cut in cuts:
        if cut.dropped not in arguments:
            rows = graph.node("rows").meta["val"]
            arguments[cut.dropped] = builder.input(cut.dropped, rows)
        dropped = arguments[cut.dropped]
        lengths[cut] = builder.call(aten.sub.Tensor, arguments["rows"], dropped)
    instead: dict[fx.Node, Callable[..., fx.Node]] = {}
    for node in graph.graph.nodes:
        if node.target is CACHED:
            found = CACHE.fullmatch(cast(fx.Node, node.args[3]).name)
            cut = cut_of(int(found[2])) if found else None
            if cut is not None:
                instead[node] = _with_lengths(builder, lengths[cut])
    mapping = builder.inlined_nodes(graph, arguments, instead=instead)
    for node in instead:
        for user in node.users:
            builder.evaluate(mapping[user])
    outputs = {name: mapping[node] for name, node in graph.output_nodes().items()}
    return builder.finish(outputs, graph.dimensions)


def _with_lengths(builder: Builder, lengths: fx.Node) -> Callable[..., fx.Node]:
    def make(*args: fx.Node, **kwargs: float | None) -> fx.Node:
        return builder.call(CACHED, *args[:5], lengths, *args[6:], **kwargs)

    return make

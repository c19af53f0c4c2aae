"""Cuts a smaller decoder out of a decoder: its first and last layers, joined.

    hidden_0 ─▶ layer 0 ─▶ hidden_1 ─▶ … ─▶ hidden_10 ─▶ layer 10 ─▶ …      layers 1 to 9 left out:
    hidden_0 ─▶ layer 0 ─▶ hidden_1 ───────────────────▶ layer 10 ─▶ …

Layers add to what goes through them, so a decoder without some still says something. Weights are
shared with the whole decoder.
"""

from collections.abc import Callable
from typing import Any, cast

from torch import fx

from optimize.ir.axis_rules import infer_axes
from optimize.ir.builder import builder_with_inputs
from optimize.ir.errors import InputModelError
from optimize.ir.graph import Graph
from optimize.ir.layer_inputs import decoder_layers


def with_fewer_layers(decoder: Graph, count: int) -> Graph:
    """A decoder of the first and last layers of another.

    Args:
        decoder: as of `Program.decoder`.
        count: layers that are left, in [1, layers); of an odd number the first part has one more,
            but the last layer always stays.
    Raises:
        InputModelError: fewer layers cannot be had, or the graph does not show its layers.
    """
    layers = decoder_layers(decoder, infer_axes(decoder))
    if not 1 <= count < len(layers):
        raise InputModelError(
            f"layers: found {count} of a decoder of {len(layers)}, expected at least 1 and fewer "
            "than it has"
        )
    at_the_end = max(1, count // 2)
    first, last = layers[count - at_the_end].hidden, layers[-at_the_end].hidden
    builder, arguments = builder_with_inputs(decoder)
    kept: dict[str, fx.Node] = {}

    def enter(*args: Any, **kwargs: Any) -> fx.Node:
        kept["hidden"] = builder.call(cast(Callable[..., Any], first.target), *args, **kwargs)
        return kept["hidden"]

    def leave(*_: Any, **__: Any) -> fx.Node:
        return kept["hidden"]

    mapping = builder.inlined_nodes(decoder, arguments, instead={first: enter, last: leave})
    outputs = {name: mapping[node] for name, node in decoder.output_nodes().items()}
    return builder.finish(outputs, decoder.dimensions)

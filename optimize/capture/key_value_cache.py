"""Gives the self-attention sites of a decoder traced without a cache explicit cache states.

    rows       sdpa(q, k, v, mask)    ───▶    sdpa(q, k, v, is_causal=True)
    prefill    sdpa(q, k, v, mask)    ───▶    sdpa(q, k, v, is_causal=True);  key_0 = pad(k), …
    decode     sdpa(q, k, v, mask)    ───▶    cached_attention(q, k, v, key_0, value_0, rows)

A site is known by its mask: the graph's input `attention_mask`, which marks every pair of rows, or
that input and a mask of keys, where the rows of a prompt attend to one another both ways.
"""

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx

from optimize.ir.axes import source_line
from optimize.ir.builder import Builder, fake_mode_of
from optimize.ir.errors import InputModelError
from optimize.ir.graph import Graph, shape, tensor_inputs
from optimize.ir.key_value_slots import padded
from optimize.ir.node_arguments import short_name
from optimize.ir.token_axis import SDPA, mask_of
from optimize.kernels.cached_attention import schema as _cached  # noqa: F401  registers the op

aten = torch.ops.aten

MASK = "attention_mask"
MOVES = ("expand", "slice", "alias", "view", "clone", "contiguous", "to", "_to_copy", "unsqueeze")
"""Ops that leave the values of a mask as they are."""

Attend = Callable[..., fx.Node]
"""(builder, site number, whether it is causal, arguments of the site) → the node in its place."""


def without_mask(graph: Graph) -> Graph:
    """A decoder over the rows of one sequence, whose sites are causal by themselves.

    Raises:
        InputModelError: as `with_cache_outputs`.
    """

    def attend(builder: Builder, site: int, causal: bool, *args: Any, **kwargs: Any) -> fx.Node:
        given = {name: kwargs[name] for name in ("scale", "enable_gqa") if name in kwargs}
        return builder.call(SDPA, *args[:3], None, 0.0, True, **given)

    return _rewritten(graph, attend, {})[0]


def with_cache_outputs(graph: Graph, capacity: int) -> tuple[Graph, int]:
    """Prefill: whole attention, and the keys and values of each site as outputs.

    Args:
        graph: traced with a whole prompt.
        capacity: rows of the caches, [B, G, capacity, D].
    Returns:
        The graph, and how many sites it has.
    Raises:
        InputModelError: the mask does not reach attention, or something else reads it.
    """
    outputs: dict[str, fx.Node] = {}

    def attend(builder: Builder, site: int, causal: bool, *args: Any, **kwargs: Any) -> fx.Node:
        query, key, value, mask = args[:4]
        while mask.op == "call_function" and short_name(mask) in ("expand", "slice"):
            mask = mask.args[0]  # attention broadcasts a mask of keys [B, 1, 1, S] by itself
        for name, item in (("key", key), ("value", value)):
            outputs[f"{name}_{site}"] = padded(builder, item, capacity)
        given = {name: kwargs[name] for name in ("scale", "enable_gqa") if name in kwargs}
        mask = None if causal else mask
        return builder.call(SDPA, query, key, value, mask, 0.0, causal, **given)

    return _rewritten(graph, attend, outputs)


def with_caches(graph: Graph, capacity: int) -> Graph:
    """Decode: attention over the cache of each site, which is an input and an output.

    Raises:
        InputModelError: as `with_cache_outputs`.
    """
    outputs: dict[str, fx.Node] = {}

    def attend(builder: Builder, site: int, causal: bool, *args: Any, **kwargs: Any) -> fx.Node:
        caches = []
        for name, item in (("key", args[1]), ("value", args[2])):
            batch, groups, _, width = shape(item)
            like = builder.fake((batch, groups, capacity, width), item.meta["val"].dtype)
            caches.append(builder.input(f"{name}_{site}", like))
        rows = next(node for node in builder.graph.nodes if node.name == "rows")
        call = builder.call(
            torch.ops.optimize.cached_attention.default,
            *args[:3],
            *caches,
            rows,
            kwargs.get("scale"),
        )
        outputs[f"key_{site}"] = builder.call(operator.getitem, call, 1)
        outputs[f"value_{site}"] = builder.call(operator.getitem, call, 2)
        return builder.call(operator.getitem, call, 0)

    return _rewritten(graph, attend, outputs)[0]


def _rewritten(graph: Graph, attend: Attend, outputs: dict[str, fx.Node]) -> tuple[Graph, int]:
    """The graph with its sites replaced and without the mask that marked them.

    Args:
        outputs: filled by `attend` with further outputs.
    """
    builder = Builder(fake_mode_of(graph))
    arguments = {
        name: builder.input(name, graph.node(name).meta["val"])
        for name in graph.inputs
        if name != MASK
    }
    marker = builder.call(aten.ones.default, [1, 1, 1, 1], dtype=torch.bool)
    marker.meta["val"] = graph.node(MASK).meta["val"]
    instead: dict[fx.Node, Callable[..., fx.Node]] = {
        node: _keys_alone for node in graph.node(MASK).users if _adds_keys(node)
    }
    batched = next(iter(arguments.values()))
    for node in graph.node(MASK).users:
        if node.target is aten.sym_size.int and node.args[1] == 0:
            instead[node] = lambda mask, dimension: builder.call(
                aten.sym_size.int, batched, dimension
            )
    sites = [node for node in graph.graph.nodes if _origin(node) is not None]
    for number, site in enumerate(sites):
        causal = _origin(site) is graph.node(MASK)
        instead[site] = _attending(attend, builder, number, causal)
    if not sites:
        raise InputModelError(
            "decoder: found no scaled_dot_product_attention that takes the attention mask, "
            'expected one per layer; load the model with attn_implementation="sdpa"'
        )
    mapping = builder.inlined_nodes(graph, arguments | {MASK: marker}, instead=instead)
    named = {name: mapping[node] for name, node in graph.output_nodes().items()}
    new = builder.finish(named | outputs, graph.dimensions)
    reader = next((node for node in new.graph.nodes if marker in node.all_input_nodes), None)
    if reader is not None:
        raise InputModelError(
            f"decoder: found the attention mask read by {short_name(reader)} "
            f"({source_line(reader)}), expected it in scaled_dot_product_attention only; a mask of "
            'the model\'s own (sliding window, ALiBi) or attn_implementation="eager" does that'
        )
    return new, len(sites)


def _attending(attend: Attend, builder: Builder, number: int, causal: bool) -> Attend:
    def make(*args: Any, **kwargs: Any) -> fx.Node:
        return attend(builder, number, causal, *args, **kwargs)

    return make


def _keys_alone(marker: fx.Node, keys: fx.Node) -> fx.Node:
    return keys


def _adds_keys(node: fx.Node) -> bool:
    """Whether a node joins the marking mask with one of keys."""
    return short_name(node) == "logical_and"


def _origin(node: fx.Node) -> fx.Node | None:
    """The marking mask, or its join with a mask of keys, that a site's mask is made from."""
    mask = mask_of(node) if node.target is SDPA else None
    while mask is not None and mask.op == "call_function" and short_name(mask) in MOVES:
        (mask,) = tensor_inputs(mask)
    if mask is None or mask.name == MASK:
        return mask
    marked = _adds_keys(mask) and cast(fx.Node, mask.args[0]).name == MASK
    return mask if marked else None

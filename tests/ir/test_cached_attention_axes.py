"""Axes of a step of decoding: new rows, cached rows and heads are kept apart."""

import torch

from optimize.ir.axis_rules import infer_axes
from tests.passes.tiny_llava import llava_program


def test_new_rows_and_cached_rows_are_different_axes() -> None:
    graph = llava_program().graphs["decode"]
    axes = infer_axes(graph)
    target = torch.ops.optimize.cached_attention.default
    sites = [node for node in graph.graph.nodes if node.target is target]
    assert len(sites) == 4
    for site in sites:
        query, key, value, keys, values = (axes.of(node) for node in site.args[:5])

        def same(one, other) -> bool:
            return axes.find(one) is axes.find(other)

        assert same(query[2], key[2]) and same(keys[2], values[2]) and same(query[3], key[3])
        assert not same(query[2], keys[2])
        # Four heads share two of keys and values.
        assert not same(query[1], key[1]) and same(key[1], keys[1]) and same(value[3], values[3])
        output, new_keys, _ = (
            axes.of(user) for user in sorted(site.users, key=lambda n: n.args[1])
        )
        assert same(output[2], query[2]) and same(output[3], value[3])
        assert same(new_keys[2], keys[2])
        batch = axes.of(graph.node("rows"))[0]
        assert same(query[0], batch) and same(keys[0], batch)

"""A program for one size where a request would decide it: engines plan better for known shapes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from optimize.ir.builder import Builder
from optimize.ir.errors import RecipeError
from optimize.ir.graph import Graph
from optimize.ir.program import Program


def with_static_sizes(program: Program, sizes: Mapping[str, int]) -> Program:
    """The program whose named sizes are fixed; it refuses requests of any other size.

    Args:
        program: stays as it is.
        sizes: name of a size of the signature → the size.
    Raises:
        RecipeError: no such size, or one that the signature does not allow.
    """
    if not sizes:
        return program
    dimensions = dict(program.signature.dimensions)
    for name, size in sizes.items():
        if name not in dimensions:
            known = ", ".join(dimensions) or "none"
            raise RecipeError(f"static: found size {name!r}, expected some of {known}")
        least, most = dimensions[name]
        if not least <= size <= most:
            raise RecipeError(f"static: found {size} for {name!r}, expected {least} to {most}")
        dimensions[name] = (size, size)
    return replace(
        program,
        graphs={role: _fixed(graph, sizes) for role, graph in program.graphs.items()},
        signature=program.signature.model_copy(update={"dimensions": dimensions}),
        decoder=None,
    )


def _fixed(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    by_symbol = {symbol: sizes[name] for name, symbol in graph.dimensions.items() if name in sizes}
    if not by_symbol:
        return graph
    if set(graph.dimensions) - set(sizes):
        missing = sorted(set(graph.dimensions) - set(sizes))
        raise RecipeError(
            f"static: found no size for {', '.join(missing)}, expected one for each size that a "
            "request decides; give all of them"
        )
    builder = Builder(FakeTensorMode())
    arguments = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder" and node.name not in graph.weights:
            value = node.meta["val"]
            shape = [_number(size, by_symbol) for size in value.shape]
            arguments[node.name] = builder.input(node.name, builder.fake(shape, value.dtype))
    outputs = builder.inline(graph, arguments, evaluate=True)
    return builder.finish(outputs, {})


def _number(size: Any, by_symbol: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs({item: by_symbol[str(item)] for item in expression.free_symbols}))

"""Arguments of FX nodes, by position or by name."""

from typing import Any, cast

import torch
from torch import fx


def short_name(node: fx.Node) -> str:
    """The op's name without namespace and overload: "linear"."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2]
    return str(getattr(target, "__name__", target))


def dimension_of(dimension: Any, rank: int) -> int:
    """A dimension counted from the front."""
    return int(dimension) % rank if rank else 0


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


PRODUCTS = {"linear": 0, "matmul": 0, "mm": 0, "addmm": 1}
"""Matrix product → which argument its rows come from; the next one is the matrix."""


def product_of(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The rows and the matrix that a node multiplies; None if it does not."""
    place = PRODUCTS.get(short_name(node)) if node.op == "call_function" else None
    if place is None:
        return None
    return cast(fx.Node, node.args[place]), cast(fx.Node, node.args[place + 1])


def first_input(node: fx.Node) -> fx.Node:
    """The first argument, a node."""
    return cast(fx.Node, node.args[0])

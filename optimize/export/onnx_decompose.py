"""Rewrites one op as simpler ATen ops, through PyTorch's own decompositions.

The last resort for ops without a lowering: composite ops (`outer`, `diff`, `meshgrid`) and those in
PyTorch's core decomposition table.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree


@cache
def _table() -> dict[Any, Callable[..., Any]]:
    return dict(torch._decomp.core_aten_decompositions())


def is_composite(target: Any) -> bool:
    """Whether PyTorch itself defines the op by simpler ones on every device."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    name: str = target.name()  # type: ignore[no-untyped-call]
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")


def decompose(node: fx.Node) -> tuple[list[fx.Node], fx.Graph] | None:
    """The node as a small graph.

    Returns:
        The node's tensor arguments in the order of the graph's placeholders, and the graph; None
        when PyTorch has no decomposition of the op.
    """
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return None
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    tensors = [
        leaf
        for leaf in dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, fx.Node))
        if isinstance(leaf.meta.get("val"), torch.Tensor)
    ]
    modes = [t.meta["val"].fake_mode for t in tensors if isinstance(t.meta["val"], FakeTensor)]
    if not modes:
        return None

    def call(*values: torch.Tensor) -> Any:
        given = dict(zip(tensors, values, strict=True))
        filled = [
            given.get(leaf, leaf.meta["val"]) if isinstance(leaf, fx.Node) else leaf
            for leaf in leaves
        ]
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return target(*args, **kwargs)

    try:
        with modes[0], torch.no_grad():
            traced = make_fx(call, decomposition_table=_table())(*(t.meta["val"] for t in tensors))
    except (RuntimeError, NotImplementedError):
        return None
    if any(inner.target is target for inner in traced.graph.nodes):
        return None
    return tensors, traced.graph

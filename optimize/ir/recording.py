"""Adds what a plain PyTorch function computes to a graph that is being built.

    chosen, used = record(builder, choose, scores, rows)

The function is run once on fake tensors, and every op it calls becomes a node. It must be
functional and may not look at values.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from optimize.ir.builder import Builder


def record(builder: Builder, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns for nodes of a graph, as nodes.

    Args:
        builder: where the nodes go.
        function: of tensors and other values; what it returns may be nested.
        arguments: nodes stand for the tensors they compute, also within lists; others are passed as
            they are.
    """
    recorder = _Recorder(builder)
    whole = _Whole(recorder)
    values = pytree.tree_map_only(fx.Node, recorder.entered, arguments)
    with torch.no_grad(), builder.fake_mode, recorder, whole:
        result = function(*values)
    return pytree.tree_map_only(torch.Tensor, recorder.node_of, result)


WHOLE: Mapping[Any, Any] = {
    torch.nn.functional.linear: torch.ops.aten.linear.default,
    torch.nn.functional.rms_norm: torch.ops.aten.rms_norm.default,
}
"""Functions that stay one node: engines have kernels for them, not for their parts."""


class _Whole(TorchFunctionMode):
    """Keeps the functions of `WHOLE` from being taken apart."""

    def __init__(self, recorder: "_Recorder") -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in WHOLE:
            return self._recorder.whole(WHOLE[func], args, kwargs or {})
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes a node of every op that is called."""

    def __init__(self, builder: Builder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._builder = builder
        # Tensors are kept, so that no other gets the identity of one that is gone.
        self._nodes: dict[int, tuple[torch.Tensor, fx.Node]] = {}

    def entered(self, node: fx.Node) -> torch.Tensor:
        """The fake tensor of a node, known from now on."""
        value: torch.Tensor = node.meta["val"]
        self._nodes[id(value)] = (value, node)
        return value

    def node_of(self, tensor: torch.Tensor) -> fx.Node:
        """The node that computes a tensor."""
        return self._nodes[id(tensor)][1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.add(func, args, kwargs, result)
        return result

    def whole(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls an op and makes one node of it, whatever it is composed of."""
        with _disable_current_modes(), self._builder.fake_mode:
            result = op(*args, **kwargs)
        self.add(op, args, kwargs, result)
        return result

    def add(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Makes the node of a call and of what it returned."""
        mapped_args, mapped_kwargs = pytree.tree_map(self._argument, (args, kwargs))
        call = self._builder.graph.call_function(func, tuple(mapped_args), mapped_kwargs)
        call.meta["val"] = result
        if isinstance(result, torch.Tensor):
            self._nodes[id(result)] = (result, call)
        elif isinstance(result, (tuple, list)):
            for place, item in enumerate(result):
                if isinstance(item, torch.Tensor):
                    part = self._builder.graph.call_function(operator.getitem, (call, place))
                    part.meta["val"] = item
                    self._nodes[id(item)] = (item, part)

    def _argument(self, item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return self.node_of(item)
        return self._builder.size(item) if isinstance(item, torch.SymInt) else item

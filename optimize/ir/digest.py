"""What identifies a program: a digest of the structure of its graphs and one of its weights.

Both are the same in every process. That of the graphs sees ops, arguments, dtypes, shapes, names of
inputs, outputs and weights; it does not see names of nodes or of symbols, sizes that a request
decides, or any number of a weight. So a fine-tuned model has the graphs of the model it came from,
and other weights.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from optimize.ir.graph import Graph


@dataclass(frozen=True)
class Source:
    """A program as it was captured, before any pass; both are SHA-256 in hexadecimal."""

    graphs: str
    weights: str


def graphs_digest(graphs: Mapping[str, Graph]) -> str:
    """SHA-256 of the structure of graphs by role, whatever their order."""
    digest = hashlib.sha256()
    for role in sorted(graphs):
        for line in _Lines(graphs[role]).all(role):
            digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of name, dtype, shape and bytes of each weight, by name.

    Reads each weight once, one to two seconds per gigabyte; only one that is not contiguous, or not
    on the CPU, is copied, by itself. A weight on the meta device has no bytes.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach()
        head = [name, str(tensor.dtype), list(tensor.shape), tensor.device.type == "meta"]
        digest.update(json.dumps(head).encode() + b"\n")
        if tensor.device.type == "meta" or tensor.numel() == 0:
            continue
        real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
        flat = real.cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


class _Lines:
    """The nodes of one graph as JSON-able lists, nodes by number and symbols by role or number."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._numbers: dict[fx.Node, int] = {}
        self._symbols: dict[str, str] = {symbol: n for n, symbol in graph.dimensions.items()}

    def all(self, role: str) -> list[Any]:
        graph = self._graph
        lines: list[Any] = [[role, list(graph.inputs), list(graph.outputs)]]
        for node in graph.graph.nodes:
            self._numbers[node] = len(self._numbers)
            lines.append([*self._what(node), self._value(node.meta.get("val"))])
        return lines

    def _what(self, node: fx.Node) -> list[Any]:
        if node.op == "placeholder":
            weight = self._graph.weights.get(node.name)
            return ["input", node.name] if weight is None else ["weight", weight]
        arguments = [self._argument(item) for item in node.args]
        options = {key: self._argument(item) for key, item in sorted(node.kwargs.items())}
        return [node.op, _target(node), arguments, options]

    def _argument(self, item: Any) -> Any:
        if isinstance(item, fx.Node):
            return {"node": self._numbers[item]}
        if isinstance(item, (list, tuple)):
            return [self._argument(inner) for inner in item]
        if isinstance(item, dict):
            return {"dict": [[key, self._argument(inner)] for key, inner in item.items()]}
        if isinstance(item, slice):
            return {"slice": [self._argument(part) for part in (item.start, item.stop, item.step)]}
        if isinstance(item, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return self._size(item)
        # `repr` tells 1, 1.0, True and "1" apart, and has every digit of a float.
        return f"{type(item).__name__} {item!r}"

    def _value(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return [str(value.dtype), *(self._size(size) for size in value.shape)]
        if isinstance(value, (tuple, list)):
            return [self._value(item) for item in value]
        return self._argument(value)

    def _size(self, size: Any) -> Any:
        if not isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return size
        expression = size.node.expr
        names = {}
        for symbol in sorted(expression.free_symbols, key=str):
            # A symbol without a name of ours is called by when it was first met.
            name = self._symbols.setdefault(str(symbol), f"#{len(self._symbols)}")
            names[symbol] = sympy.Symbol(name, **symbol.assumptions0)
        return {"size": str(expression.xreplace(names))}


def _target(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, (str, torch._ops.OpOverload)):
        return str(target)
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"

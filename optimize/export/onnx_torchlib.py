"""Lowers an op through onnxscript's torchlib: the long tail that has no rule of its own.

This is the one place that touches the private half of `torch.onnx`; it was written against torch
2.11 to 2.13.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import onnx_ir as ir
import onnxscript
import torch
from onnxscript import evaluator
from torch import fx
from torch.onnx._internal.exporter import _building, _dispatching, _registration, _tensors

from optimize.export.onnx_builder import DTYPES, OPSET, OnnxBuilder


@cache
def _registry() -> Any:
    return _registration.ONNXRegistry().from_torchlib(opset_version=OPSET)


def lower(b: OnnxBuilder, node: fx.Node, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
    """The node's value or values through torchlib, or None when it has no function for the op."""
    function, _ = _dispatching.dispatch(node, _registry())
    if function is None:
        return None
    opset = onnxscript.values.Opset("", OPSET)
    stand_ins: dict[ir.Value, Any] = {}

    def stand_in(argument: Any, source: Any) -> Any:
        """Torchlib computes with Python operators, which plain values do not have."""
        if isinstance(argument, (list, tuple)):
            return [stand_in(a, s) for a, s in zip(argument, source, strict=True)]
        if isinstance(argument, ir.Value):
            if argument not in stand_ins:
                stand_ins[argument] = _symbolic(opset, argument, source)
            return stand_ins[argument]
        if isinstance(argument, torch.dtype):
            return int(DTYPES[argument])
        if isinstance(argument, (torch.device, torch.memory_format, torch.layout)):
            return None
        return argument

    inputs = [stand_in(a, s) for a, s in zip(arguments, node.args, strict=True)]
    named = {name: stand_in(item, node.kwargs[name]) for name, item in keywords.items()}
    if named.get("dtype", 0) is None:
        named["dtype"] = -1
    constants: dict[Any, ir.Value] = {}
    recorder: Any = _building.OpRecorder(opset, constants)  # type: ignore[abstract]
    with evaluator.default_as(recorder):
        outputs = function(*inputs, **named)
    if recorder.functions:
        return None
    b.nodes.extend(recorder.nodes)
    for value, symbol in stand_ins.items():
        ir.convenience.replace_all_uses_with(symbol, value)
    replaced = {id(symbol): value for value, symbol in stand_ins.items()}
    for value in constants.values():
        if value.producer() is None:
            b.constants[f"torchlib_{len(b.constants)}"] = value
    if isinstance(outputs, (list, tuple)):
        return tuple(replaced.get(id(output), output) for output in outputs)
    return replaced.get(id(outputs), outputs)


def _symbolic(opset: Any, value: ir.Value, source: Any) -> Any:
    example = source.meta["val"] if isinstance(source, fx.Node) else source
    if not isinstance(example, torch.Tensor):
        return _tensors.SymbolicTensor(
            opset, name=value.name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64)
        )
    sizes: list[int | str] = [s if isinstance(s, int) else str(s.node.expr) for s in example.shape]
    if example.is_complex():
        sizes.append(2)
    return _tensors.SymbolicTensor(
        opset,
        name=value.name,
        shape=ir.Shape(sizes),
        type=ir.TensorType(DTYPES[example.dtype]),
        const_value=value.const_value,
    )

"""Kernels that stay one ONNX node, for engines that have them as plugins."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from optimize.export.onnx_builder import OnnxBuilder


def as_plugin(
    b: OnnxBuilder, target: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> ir.Value | None:
    """The node of a kernel: its tensors as inputs, everything else as attributes.

    What is left out is 0 where the kernel's plugin takes a number; a tensor that may be left out
    and is given is none of the plugin's, so there is None then, and for kernels that are no plugin.
    """
    name = str(target.name()).partition(".")[0]
    if name not in b.plugins:
        return None
    inputs: list[ir.Value] = []
    attributes: dict[str, Any] = {}
    for place, argument in enumerate(target._schema.arguments):
        given = arguments[place] if place < len(arguments) else keywords.get(argument.name)
        given = argument.default_value if given is None else given
        kind = str(argument.type)
        if kind == "Optional[Tensor]":
            if given is not None:
                return None
        elif kind == "Tensor":
            inputs.append(given)
        elif "float" in kind:
            attributes[argument.name] = float(given or 0)
        else:
            attributes[argument.name] = given
    namespace, _, op = name.partition("::")
    return b.op(op, *inputs, domain=namespace, plugin_namespace=namespace, **attributes)

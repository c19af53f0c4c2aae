"""Prints a program as Python that a reader can follow, and the difference of two programs.

def denoiser(latent, timestep, class_labels):
    # latent: float32 [batch, 1, 32, 32]
    conv2d = aten.conv2d(latent, w["patch.weight"], w["patch.bias"], [2, 2])  # float32 [batch, …]
    …
    return {"prediction": view_9}

def program(request, noise, table):
    latent = noise["latent"]  # float32 [batch, 1, 32, 32]
    for step in range(50):
        prediction = denoiser(latent=latent, timestep=table["timestep"][step], …)["prediction"]
        …
    return {"latent": latent}
"""

import difflib
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import torch
from torch import fx

from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.runtime.loop import Binding, Call, Repeat


def program_text(program: Program) -> str:
    """The program as readable Python: its graphs, then its loop."""
    parts = [graph_text(role, graph) for role, graph in program.graphs.items()]
    return "\n\n".join([*parts, loop_text(program)]) + "\n"


def program_diff(before: Program, after: Program, context: int = 3) -> str:
    """The unified difference of two printed programs; empty when they print alike."""
    lines = difflib.unified_diff(
        program_text(before).splitlines(),
        program_text(after).splitlines(),
        "before",
        "after",
        lineterm="",
        n=context,
    )
    return "\n".join(lines)


def graph_text(role: str, graph: Graph) -> str:
    """One graph as a Python function, with the dtype and shape of every value in a comment."""
    symbols = {symbol: name for name, symbol in graph.dimensions.items()}
    lines = [f"def {role}({', '.join(graph.inputs)}):"]
    names: dict[fx.Node, str] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            weight = graph.weights.get(node.name)
            names[node] = node.name if weight is None else f'w["{weight}"]'
            if weight is None:
                lines.append(f"    # {node.name}: {value_text(node.meta.get('val'), symbols)}")
        elif node.op == "output":
            values = zip(graph.outputs, node.args[0], strict=False)
            shown = ", ".join(f'"{name}": {_argument(value, names)}' for name, value in values)
            lines.append(f"    return {{{shown}}}")
        else:
            names[node] = node.name
            lines.append(f"    {_node_text(node, names, symbols)}")
    return "\n".join(lines)


def loop_text(program: Program) -> str:
    """The loop of a program as a Python function."""
    lines = ["def program(request, noise, table):"]
    for slot in program.loop.slots:
        start = "zeros()" if slot.initial is None else _binding(slot.initial, "0")
        shape = ", ".join(map(str, slot.shape))
        lines.append(f"    {slot.name} = {start}  # {slot.dtype} [{shape}]")
    for item in program.loop.body:
        lines += _item_lines(item, "    ", "0")
    results = ", ".join(f'"{name}": {slot}' for name, slot in program.loop.results.items())
    lines.append(f"    return {{{results}}}")
    return "\n".join(lines)


def value_text(value: Any, symbols: Mapping[str, str]) -> str:
    """A value's type as a reader knows it: `float32 [batch, 64, 96]`."""
    if isinstance(value, torch.Tensor):
        shape = ", ".join(_size(size, symbols) for size in value.shape)
        return f"{str(value.dtype).removeprefix('torch.')} [{shape}]"
    if isinstance(value, (tuple, list)):
        return ", ".join(value_text(item, symbols) for item in value)
    return _size(value, symbols)


def _size(size: Any, symbols: Mapping[str, str]) -> str:
    if not isinstance(size, torch.SymInt):
        return str(size)
    expression = size.node.expr
    text = str(expression)
    for symbol in sorted(map(str, expression.free_symbols), key=len, reverse=True):
        text = text.replace(symbol, symbols.get(symbol, symbol))
    return text


def _node_text(node: fx.Node, names: Mapping[fx.Node, str], symbols: Mapping[str, str]) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    op = str(packet) if packet is not None else str(getattr(node.target, "__name__", node.target))
    arguments = [_argument(item, names) for item in node.args]
    arguments += [f"{key}={_argument(item, names)}" for key, item in node.kwargs.items()]
    call = f"{op}({', '.join(arguments)})"
    if op == "getitem":
        call = f"{arguments[0]}[{arguments[1]}]"
    return f"{node.name} = {call}  # {value_text(node.meta.get('val'), symbols)}"


def _argument(item: Any, names: Mapping[fx.Node, str]) -> str:
    if isinstance(item, fx.Node):
        return names.get(item, item.name)
    if isinstance(item, (list, tuple)):
        return f"[{', '.join(_argument(inner, names) for inner in item)}]"
    if isinstance(item, slice):
        return f"{item.start}:{item.stop}:{item.step}"
    return repr(item) if isinstance(item, str) else str(item)


def _binding(binding: Binding, step: str) -> str:
    if binding.source == "state":
        return binding.name
    text = f'{binding.source}["{binding.name}"]'
    if binding.steps is not None:
        start = "" if step == "0" else step
        return f"{text}[{start}:{start + ' + ' if start else ''}{binding.steps}]"
    return f"{text}[{step}]" if binding.source == "table" else text


def _item_lines(item: Call | Repeat, indent: str, step: str) -> Iterator[str]:
    if isinstance(item, Call):
        yield indent + _call_text(item, step)
        return
    index = "step" if step == "0" else f"{step}_inner"
    first = 0
    for name, group in groupby(item.steps):
        count = len(list(group))
        bounds = f"{count}" if first == 0 else f"{first}, {first + count}"
        if item.stride != 1:
            bounds = f"{first * item.stride}, {(first + count) * item.stride}, {item.stride}"
        comment = f"  # {name}" if len(item.bodies) > 1 else ""
        yield f"{indent}for {index} in range({bounds}):{comment}"
        for inner in item.bodies[name]:
            yield from _item_lines(inner, indent + "    ", index)
        if item.until is not None:
            yield f"{indent}    if {item.until}.all(): break"
        first += count


def _call_text(call: Call, step: str) -> str:
    inputs = ", ".join(f"{name}={_binding(item, step)}" for name, item in call.inputs.items())
    targets = ", ".join(
        to.state if to.state is not None else f'results["{to.append}"][]'
        for to in call.outputs.values()
    )
    outputs = ", ".join(f'"{name}"' for name in call.outputs)
    return f"{targets} = {call.graph}({inputs})[{outputs}]"

"""What a well-formed graph and a well-formed program are; run after every pass.

A graph is functional (no op writes its input), its placeholders are its weights and its inputs in
order, every node carries the value it computes, and computing the shapes anew gives the ones it
claims; where the batch may vary, at another batch than the traced one, which finds sizes baked into
a view. A loop names only things that exist, and hands each graph the dtype and shape it takes.
"""

import operator
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from optimize.ir.errors import PassError
from optimize.ir.graph import Graph, hint
from optimize.ir.loop_spec import loop_problems
from optimize.ir.program import Program

MAX_SHOWN = 5

_SHAPES_CHECKED: WeakKeyDictionary[fx.GraphModule, str] = WeakKeyDictionary()
"""Modules whose shapes were found right, with their code then: programs share most graphs."""


def check_program(program: Program, after: str = "capture") -> None:
    """Checks all graphs and the loop of a program.

    Args:
        program: what to check.
        after: the pass that made it, for the message.
    Raises:
        PassError: naming pass, graph, node, what was found and what was expected.
    """
    problems = list(loop_problems(program))
    uncalled = {} if program.decoder is None else {"decoder": program.decoder}
    for role, graph in {**uncalled, **program.graphs}.items():
        problems += [f"graph {role!r}: {problem}" for problem in _problems(graph)]
        problems += [f"graph {role!r}: {problem}" for problem in _weight_problems(graph, program)]
    _raise(problems, after)


def check_graph(graph: Graph, after: str = "capture") -> None:
    """Checks one graph; the weights' own shapes need `check_program`.

    Raises:
        PassError: naming pass, node, what was found and what was expected.
    """
    _raise(list(_problems(graph)), after)


def _raise(problems: list[str], after: str) -> None:
    if not problems:
        return
    more = [f"… and {len(problems) - MAX_SHOWN} more"] if len(problems) > MAX_SHOWN else []
    raise PassError(
        f"{after}: left a program that breaks its specification; this is a defect of the pass\n"
        + "\n".join(f"  {problem}" for problem in problems[:MAX_SHOWN] + more)
    )


def _problems(graph: Graph) -> Iterator[str]:
    try:
        graph.graph.lint()
    except RuntimeError as error:
        yield str(error).splitlines()[0]
        return
    yield from _signature_problems(graph)
    if graph.module.code != graph.graph.python_code("self").src:
        yield "module: found nodes changed after it was compiled; call module.recompile()"
    structural = [problem for node in graph.graph.nodes for problem in _node_problems(node)]
    yield from structural
    if structural:
        return
    if _SHAPES_CHECKED.get(graph.module) == graph.module.code:
        return
    batch = graph.dimensions.get("batch")
    known = traced_sizes(graph)
    if batch is not None and batch not in known:
        yield f"dimension 'batch': found no input with a size {batch}, expected at least one"
        return
    problems = list(_shape_problems(graph, {} if batch is None else {batch: known[batch] + 1}))
    yield from problems
    if not problems:
        _SHAPES_CHECKED[graph.module] = graph.module.code


def _signature_problems(graph: Graph) -> Iterator[str]:
    nodes = list(graph.graph.nodes)
    placeholders = [node.name for node in nodes if node.op == "placeholder"]
    inputs = tuple(name for name in placeholders if name not in graph.weights)
    if inputs != tuple(graph.inputs):
        yield f"placeholders: found {list(inputs)}, expected the inputs {list(graph.inputs)}"
    for name in sorted(set(graph.weights) - set(placeholders)):
        yield f"weight {name!r}: found no placeholder of this name"
    output = nodes[-1]
    if output.op != "output":
        yield f"{output.name}: found {output.op} at the end, expected the output"
        return
    values = output.args[0]
    if not isinstance(values, (tuple, list)) or len(values) != len(graph.outputs):
        found = len(values) if isinstance(values, (tuple, list)) else type(values).__name__
        yield f"output: found {found} values, expected {len(graph.outputs)}: {list(graph.outputs)}"
        return
    for name, value in zip(graph.outputs, values, strict=True):
        if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), torch.Tensor):
            yield f"output {name!r}: found {value}, expected a tensor node"


def _node_problems(node: fx.Node) -> Iterator[str]:
    if node.op not in ("placeholder", "call_function", "output"):
        yield f"node {node.name}: found {node.op}, expected placeholder, call_function or output"
        return
    if node.op != "output" and node.meta.get("val") is None:
        yield f"node {node.name}: found no meta['val'], expected the fake tensor it computes"
    if node.op != "call_function":
        return
    if isinstance(node.target, torch._ops.OpOverload):
        if node.target._schema.is_mutable:
            yield (
                f"node {node.name}: found {node.target}, which writes its input; "
                f"expected {_functional(node)}"
            )
    elif node.target is not operator.getitem and not _is_size_arithmetic(node):
        yield (
            f"node {node.name}: found {node.target}, "
            "expected an op overload such as aten.add.Tensor"
        )


def _functional(node: fx.Node) -> str:
    name = str(node.target)
    return f"the functional {name.replace('_.', '.')}" if "_." in name else "a functional op"


def _is_size_arithmetic(node: fx.Node) -> bool:
    return isinstance(
        node.meta.get("val"), (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
    )


def traced_sizes(graph: Graph) -> dict[str, int]:
    """Symbol → its traced value, for every symbol that is the size of an input by itself."""
    found: dict[str, int] = {}
    for node in graph.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        if isinstance(value, torch.Tensor):
            for size in value.shape:
                if isinstance(size, torch.SymInt) and size.node.expr.is_symbol:
                    found[str(size.node.expr)] = hint(size)
    return found


def concrete_size(size: Any, sizes: Mapping[str, int]) -> int:
    """The value of a size where some symbols have other values than when traced."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    expression = size.node.expr
    if not any(str(symbol) in sizes for symbol in expression.free_symbols):
        return hint(size)
    environment = size.node.shape_env
    values = {
        symbol: sizes.get(str(symbol), environment.backed_var_to_val.get(symbol, 0))
        for symbol in expression.free_symbols
    }
    return int(expression.subs(values))


def _shape_problems(graph: Graph, sizes: Mapping[str, int]) -> Iterator[str]:
    """Computes all shapes anew, without symbols, and compares them with the claimed ones."""
    at = f" with {', '.join(f'{name}={size}' for name, size in sizes.items())}" if sizes else ""
    values: dict[fx.Node, Any] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for node in graph.graph.nodes:
            if node.op == "output":
                return
            claimed = node.meta["val"]
            if node.op == "placeholder":
                values[node] = torch.empty(
                    [concrete_size(size, sizes) for size in claimed.shape], dtype=claimed.dtype
                )
                continue
            arguments, keywords = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            try:
                values[node] = node.target(*arguments, **keywords)
            except Exception as error:  # any op may raise anything; the node is what matters
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                yield f"node {node.name}: {node.target} cannot run{at}: {reason}"
                return
            problem = _difference(values[node], claimed, sizes)
            if problem is not None:
                yield f"node {node.name}: {node.target}: {problem}{at}"
                return


def _difference(computed: Any, claimed: Any, sizes: Mapping[str, int]) -> str | None:
    if isinstance(claimed, (tuple, list)):
        if not isinstance(computed, (tuple, list)) or len(computed) != len(claimed):
            return f"found meta['val'] of {len(claimed)} values, expected {computed}"
        pairs = zip(computed, claimed, strict=True)
        return next((text for text in (_difference(*pair, sizes) for pair in pairs) if text), None)
    if not isinstance(claimed, torch.Tensor):
        value = concrete_size(claimed, sizes) if isinstance(claimed, torch.SymInt) else claimed
        return None if computed == value else f"found meta['val'] {value}, expected {computed}"
    shape = [concrete_size(size, sizes) for size in claimed.shape]
    if not isinstance(computed, torch.Tensor):
        return f"found meta['val'] a tensor, expected {type(computed).__name__}"
    if list(computed.shape) != shape or computed.dtype != claimed.dtype:
        return (
            f"found meta['val'] {_dtype(claimed)} {shape}, "
            f"expected {_dtype(computed)} {list(computed.shape)}"
        )
    return None


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _weight_problems(graph: Graph, program: Program) -> Iterator[str]:
    for node in graph.graph.nodes:
        if node.op != "placeholder" or node.name not in graph.weights:
            continue
        name = graph.weights[node.name]
        weight, claimed = program.weights.get(name), node.meta.get("val")
        if weight is None:
            yield f"weight {node.name!r}: found no tensor {name!r} in the program's weights"
        elif isinstance(claimed, torch.Tensor) and (
            tuple(weight.shape) != tuple(claimed.shape) or weight.dtype != claimed.dtype
        ):
            yield (
                f"weight {name!r}: found {_dtype(weight)} {list(weight.shape)}, "
                f"expected {_dtype(claimed)} {list(claimed.shape)}"
            )

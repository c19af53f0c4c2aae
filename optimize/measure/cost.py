"""Counts floating-point operations and bytes of graphs and programs, at the traced sizes.

A multiplication and an addition are two operations. Elementwise ops and reductions count one per
element, moving data counts none. Kernels of ours declare their own formula with
`torch.utils.flop_counter.register_flop_formula`.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry

from optimize.ir.collectives import bytes_sent, is_collective, waits
from optimize.ir.graph import Graph, hint, tensor_inputs
from optimize.ir.program import Program
from optimize.kernels import catalog as _kernels  # noqa: F401
from optimize.runtime.loop import Call, Loop, Repeat

aten, ours = torch.ops.aten, torch.ops.optimize
Shape = tuple[int, ...]


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node: operations, and bytes read and written when nothing is fused."""

    name: str
    op: str
    flops: float
    bytes: float


def graph_costs(graph: Graph) -> list[NodeCost]:
    """The cost of each op of a graph, in order."""
    return [
        NodeCost(node.name, op_name(node), node_flops(node), _node_bytes(node))
        for node in graph.graph.nodes
        if node.op == "call_function" and output_tensors(node)
    ]


def graph_flops(graph: Graph) -> float:
    """Floating-point operations of one call of a graph."""
    return math.fsum(cost.flops for cost in graph_costs(graph))


def graph_bytes(graph: Graph) -> float:
    """Bytes one call of a graph reads and writes when nothing is fused."""
    return math.fsum(cost.bytes for cost in graph_costs(graph))


def graph_bytes_sent(graph: Graph) -> float:
    """Bytes one call of a graph sends to other processes."""
    return math.fsum(bytes_sent(node) for node in graph.graph.nodes)


def program_calls(program: Program) -> dict[str, int]:
    """Graph → how often one request calls it; `until` is taken as never true."""
    return loop_calls(program.loop)


def loop_calls(loop: Loop) -> dict[str, int]:
    """Graph → how often one run of a loop calls it; `until` is taken as never true."""
    counts: Counter[str] = Counter()
    for item in loop.body:
        counts.update(_calls(item))
    return dict(counts)


def program_flops(program: Program) -> float:
    """Floating-point operations of one request, at the traced batch."""
    calls = program_calls(program)
    return math.fsum(count * graph_flops(program.graphs[name]) for name, count in calls.items())


def program_bytes(program: Program) -> float:
    """Bytes one request reads and writes when nothing is fused, at the traced batch."""
    calls = program_calls(program)
    return math.fsum(count * graph_bytes(program.graphs[name]) for name, count in calls.items())


def program_costs(program: Program, loop: Loop | None = None) -> dict[str, Any]:
    """What one request costs, at the traced batch; `until` is taken as never true.

    Args:
        loop: what calls the graphs where it is not the program's: with the steps inside a graph
            there are fewer engine calls for the same work.
    Returns:
        {"flops", "bytes", "engine_calls", "graphs": role → the same of it, with "calls", and with
        its "nodes" and how many there are of each of its "ops"}; all but these two per request.
    """
    calls = program_calls(program)
    engine = calls if loop is None else loop_calls(loop)
    graphs: dict[str, dict[str, Any]] = {}
    for role, graph in sorted(program.graphs.items()):
        found, times = graph_costs(graph), calls.get(role, 0)
        graphs[role] = {
            "calls": engine.get(role, 0),
            "flops": times * math.fsum(cost.flops for cost in found),
            "bytes": times * math.fsum(cost.bytes for cost in found),
            "nodes": len(found),
            "ops": dict(Counter(cost.op for cost in found).most_common()),
        }
    return {
        "flops": math.fsum(graph["flops"] for graph in graphs.values()),
        "bytes": math.fsum(graph["bytes"] for graph in graphs.values()),
        "engine_calls": sum(engine.values()),
        "graphs": graphs,
    }


def node_flops(node: fx.Node) -> float:
    """Floating-point operations of one node."""
    packet = getattr(node.target, "overloadpacket", None)
    outputs = output_tensors(node)
    if packet is None or not outputs:
        return 0.0
    if packet in _FORMULAS:
        return float(_FORMULAS[packet](node))
    if packet in flop_registry:
        args, kwargs = arguments_on_meta(node)
        return float(flop_registry[packet](*args, **kwargs, out_val=_on_meta(node)))
    if packet in _MOVES or is_collective(node):
        return 0.0
    if packet in _REDUCTIONS:
        return float(max(math.prod(_shape(item)) for item in tensor_inputs(node)))
    return float(math.prod(_sizes(outputs[0])))


def arguments_on_meta(node: fx.Node) -> tuple[Any, Any]:
    """What an op is called with, by position and by name: tensors on the meta device.

    Sizes are the traced ones.
    """
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), _on_meta)
    return args, kwargs


def op_name(node: fx.Node) -> str:
    """The op as a reader knows it: `aten.linear`."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(packet) if packet is not None else str(getattr(node.target, "__name__", node.target))


def _calls(item: Call | Repeat) -> Counter[str]:
    if isinstance(item, Call):
        return Counter({item.graph: 1})
    counts: Counter[str] = Counter()
    for body, times in Counter(item.steps).items():
        for inner in item.bodies[body]:
            for name, count in _calls(inner).items():
                counts[name] += times * count
    return counts


def output_tensors(node: fx.Node) -> list[torch.Tensor]:
    """What a node computes, as fake tensors."""
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return [item for item in values if isinstance(item, torch.Tensor)]


def _sizes(tensor: torch.Tensor) -> Shape:
    return tuple(hint(size) for size in tensor.shape)


def _shape(node: Any) -> Shape:
    return _sizes(node.meta["val"])


def _on_meta(node: fx.Node) -> Any:
    """What a node computes, on the meta device at the traced sizes."""

    def concrete(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return torch.empty(_sizes(item), dtype=item.dtype, device="meta")
        return hint(item) if isinstance(item, torch.SymInt) else item

    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return type(value)(concrete(item) for item in value)
    return concrete(value)


def _node_bytes(node: fx.Node) -> float:
    packet = getattr(node.target, "overloadpacket", None)
    if packet in VIEWS or packet is None or waits(node):
        return 0.0
    tensors = [item.meta["val"] for item in tensor_inputs(node)] + output_tensors(node)
    return float(sum(math.prod(_sizes(item)) * item.dtype.itemsize for item in tensors))


def _linear(node: fx.Node) -> float:
    return 2.0 * math.prod(_shape(node)) * _shape(node.args[1])[-1]


def _matmul(node: fx.Node) -> float:
    return 2.0 * math.prod(_shape(node)) * _shape(node.args[0])[-1]


def _attention(node: fx.Node) -> float:
    """Both products, with the length of the keys; the softmax is not counted."""
    query, key, value = (_shape(item) for item in node.args[:3])
    scores = math.prod(query[:-1]) * key[-2]
    return 2.0 * scores * (query[-1] + value[-1])


def _convolution(node: fx.Node) -> float:
    weight = _shape(node.args[1])
    return 2.0 * math.prod(_shape(node)) * math.prod(weight[1:])


def _transposed_convolution(node: fx.Node) -> float:
    weight = _shape(node.args[1])
    return 2.0 * math.prod(_shape(node.args[0])) * math.prod(weight[1:])


def _einsum(node: fx.Node) -> float:
    """One multiplication and addition per point of the joint index space."""
    equation, operands = node.args[0], node.args[1]
    sizes: dict[str, int] = {}
    terms = str(equation).replace(" ", "").split("->")[0].split(",")
    for term, operand in zip(terms, operands, strict=True):  # type: ignore[arg-type]
        shape = _shape(operand)
        letters = term.replace("...", "")
        lead = len(shape) - len(letters) if "..." in term else 0
        start = term.index("...") if "..." in term else 0
        for position in range(lead):
            name = f"...{lead - position}"
            sizes[name] = max(sizes.get(name, 1), shape[start + position])
        for letter, size in zip(letters, shape[:start] + shape[start + lead :], strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
    return 2.0 * math.prod(sizes.values())


_FORMULAS: dict[Any, Callable[[fx.Node], float]] = {
    aten.linear: _linear,
    aten.matmul: _matmul,
    aten.einsum: _einsum,
    aten.scaled_dot_product_attention: _attention,
    aten.conv1d: _convolution,
    aten.conv2d: _convolution,
    aten.conv3d: _convolution,
    aten.conv_transpose1d: _transposed_convolution,
    aten.conv_transpose2d: _transposed_convolution,
    aten.conv_transpose3d: _transposed_convolution,
}

VIEWS = {
    aten.view, aten.reshape, aten._unsafe_view, aten.permute, aten.transpose, aten.t,
    aten.expand, aten.unsqueeze, aten.squeeze, aten.slice, aten.select, aten.split,
    aten.split_with_sizes, aten.chunk, aten.unbind, aten.flatten, aten.unflatten, aten.narrow,
    aten.alias, aten.detach, aten.view_as_real, aten.view_as_complex, aten.sym_size,
    aten.movedim, aten.expand_as, aten.view_as, aten.diagonal, aten.unfold,
}  # fmt: skip
"""Ops that return their input's memory under another shape."""

# Ops that move or make data without arithmetic.
_MOVES = VIEWS | {
    aten.clone, aten.contiguous, aten._to_copy, aten.to, aten.copy, aten.cat, aten.stack,
    aten.repeat, aten.repeat_interleave, aten.roll, aten.flip, aten.pad, aten.constant_pad_nd,
    aten.embedding, aten.index, aten.index_select, aten.index_put, aten.gather, aten.scatter,
    aten.slice_scatter, aten.select_scatter, aten.full, aten.full_like, aten.zeros, aten.zeros_like,
    aten.ones, aten.ones_like, aten.empty, aten.empty_like, aten.new_zeros, aten.new_full,
    aten.new_ones, aten.arange, aten.scalar_tensor, aten.lift_fresh_copy, aten.dropout,
    aten.pixel_shuffle, aten.pixel_unshuffle, aten.tile, aten.where,
    ours.gather_rows, ours.scatter_rows,
}  # fmt: skip

# Ops whose work goes with their input, not their output.
_REDUCTIONS = {
    aten.sum, aten.mean, aten.amax, aten.amin, aten.max, aten.min, aten.argmax, aten.argmin,
    aten.var, aten.std, aten.var_mean, aten.norm, aten.linalg_vector_norm, aten.any, aten.all,
    aten.cumsum, aten.cumprod, aten.topk, aten.sort, aten.argsort, aten.softmax, aten._softmax,
    aten.log_softmax, aten._log_softmax, aten.layer_norm, aten.native_layer_norm, aten.rms_norm,
    aten.group_norm, aten.native_group_norm, aten.batch_norm, aten.prod,
}  # fmt: skip

"""Predicts seconds from counted work: a roofline per op, and the cost of starting each.

    op       launch + max(operations / rate, bytes / bandwidth)
    graph    the sum over its ops
    request  sum over engine calls of (graph + call)

The counts are exact (`optimize.measure.cost`); the rates are a machine's. How far predictions are
from measurements: docs/cost_model.md.
"""

import bisect
import math
from functools import cache

import torch
from torch import fx

from optimize.ir.graph import Graph, hint, tensor_inputs
from optimize.ir.program import Program
from optimize.measure.cost import (
    aten,
    is_elementwise,
    node_bytes,
    node_flops,
    ours,
    output_tensors,
    program_calls,
)
from optimize.measure.machines import MACHINES, THIS_CPU, Machine, find_machine

MATRIX = {
    aten.linear, aten.matmul, aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.einsum,
    aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution,
    aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d,
}  # fmt: skip
ATTENTION = {
    aten.scaled_dot_product_attention,
    ours.cached_attention,
    ours.tree_attention,
    ours.tile_attention,
}
COPYING = {
    aten.permute, aten.transpose, aten.t, aten.movedim, aten.slice, aten.split,
    aten.split_with_sizes, aten.chunk, aten.unbind, aten.select, aten.narrow, aten.unfold,
}  # fmt: skip
"""Views that ONNX Runtime copies."""
SLOW_ELEMENTS = {
    aten.exp, aten.expm1, aten.log, aten.log1p, aten.tanh, aten.sigmoid, aten.silu, aten.gelu,
    aten.erf, aten.sin, aten.cos, aten.atan2, aten.pow, aten.softplus, aten.mish, aten.softmax,
    aten._softmax, aten.log_softmax, aten._log_softmax,
}  # fmt: skip


def machine_named(name: str) -> Machine:
    """A GPU of `MACHINES`, or this CPU under the name "this-cpu".

    Raises:
        RecipeError: there is no such machine.
    """
    return this_cpu() if name == THIS_CPU else find_machine(name)


@cache
def this_cpu(threads: int = 1) -> Machine:
    """This processor with ONNX Runtime, from timing small graphs: about a second, once a process.

    Args:
        threads: of one operator, in [1, 1024].
    """
    from optimize.measure.calibrate_cpu import calibrated

    return calibrated(threads)


def predict_seconds(program: Program, machine: Machine) -> float:
    """Seconds of one request at the traced sizes; `until` is taken as never true."""
    return math.fsum(
        calls * (predict_graph(program.graphs[name], machine) + machine.call_seconds)
        for name, calls in program_calls(program).items()
    )


def predictions(program: Program) -> dict[str, float]:
    """GPU → predicted seconds of one request."""
    return {name: predict_seconds(program, machine) for name, machine in MACHINES.items()}


def predict_graph(graph: Graph, machine: Machine) -> float:
    """Seconds of one call of a graph at the traced sizes, without what starts the call."""
    return math.fsum(node_seconds(node, machine) for node in graph.graph.nodes)


def node_seconds(node: fx.Node, machine: Machine) -> float:
    """Seconds of one op."""
    packet = getattr(node.target, "overloadpacket", None)
    outputs = output_tensors(node)
    if node.op != "call_function" or packet is None or not outputs:
        return 0.0
    moved = node_bytes(node)
    if machine.copies and packet in COPYING:
        moved = 2.0 * sum(_numbers(item) * item.dtype.itemsize for item in outputs)
    elif moved == 0:
        return 0.0
    flops = node_flops(node)
    if packet in MATRIX:
        rate = machine.efficiency * machine.rate(_dtype(node)) * _row_share(node, machine)
    elif packet in ATTENTION:
        rate = machine.attention_efficiency * machine.rate(_dtype(node))
    elif machine.fuses and is_elementwise(node) and _fuses(node):
        return _fused_seconds(node, machine)
    else:
        slow = sum(_numbers(item) for item in outputs) if packet in SLOW_ELEMENTS else 0
        return (
            machine.launch_seconds
            + moved / machine.bytes_per_second
            + slow * machine.element_seconds
        )
    return machine.launch_seconds + max(flops / rate, moved / machine.bytes_per_second)


def _fuses(node: fx.Node) -> bool:
    """Whether an elementwise op runs with the op that makes one of its inputs."""
    return any(item.op == "call_function" for item in tensor_inputs(node))


def _fused_seconds(node: fx.Node, machine: Machine) -> float:
    """Of an op inside another's kernel: what it reads besides, and nothing else."""
    others = [item for item in tensor_inputs(node) if item.op != "call_function"]
    read = sum(
        _numbers(tensor) * tensor.dtype.itemsize
        for item in others
        for tensor in output_tensors(item)
    )
    return read / machine.bytes_per_second


def _row_share(node: fx.Node, machine: Machine) -> float:
    """The share of its rate that a product of so few rows reaches."""
    table = machine.row_efficiency
    if not table:
        return 1.0
    outputs = output_tensors(node)
    sizes = [hint(size) for size in outputs[0].shape]
    packet = getattr(node.target, "overloadpacket", None)
    # Of a convolution, the places are the rows; of a product, all but the columns.
    name = str(packet)
    rows = math.prod(sizes[2:]) * sizes[0] if "conv" in name else math.prod(sizes[:-1])
    known = [math.log(item) for item, _ in table]
    place = math.log(max(1, rows))
    index = bisect.bisect(known, place)
    if index == 0:
        return table[0][1]
    if index == len(table):
        return table[-1][1]
    part = (place - known[index - 1]) / (known[index] - known[index - 1])
    return (1 - part) * table[index - 1][1] + part * table[index][1]


def _numbers(tensor: torch.Tensor) -> int:
    return math.prod([hint(size) for size in tensor.shape])


def _dtype(node: fx.Node) -> str:
    return str(output_tensors(node)[0].dtype).removeprefix("torch.")

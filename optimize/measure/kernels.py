"""The kernels that a graph becomes on a machine: what each computes, reads and writes.

A kernel is what an engine starts once. Where a machine fuses, views start none, and a chain of
elementwise ops and sums is one kernel that reads its inputs once and writes what others need.
Where it does not, each op is one or more, and one that changes strides copies. What depends on
weights only is computed when the graph is loaded.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from optimize.ir.graph import Graph, hint, tensor_inputs
from optimize.kernels.solver_step.pattern import operations
from optimize.measure.cost import VIEWS, node_flops, output_tensors

aten, ours = torch.ops.aten, torch.ops.optimize


@dataclass
class Kernel:
    """One kernel, or several ops of an engine that does not fuse.

    Attributes:
        kind: "product", "convolution", "attention", "softmax", "norm", "sum", "arithmetic",
            "activation", "function", "power", "copy" or "view".
        flops: floating-point operations.
        bytes: read and written.
        weight_bytes: of these, read from weights.
        elements: what its time per element goes with.
        dtype: of its operands, such as "float32".
        rows: the least dimension of a product; infinite of other kinds.
        launches: how often the engine starts something for it.
    """

    kind: str
    flops: float
    bytes: float
    elements: float
    dtype: str
    rows: float = math.inf
    launches: int = 1
    weight_bytes: float = 0.0


def graph_kernels(graph: Graph, fuses: bool) -> list[Kernel]:
    """The kernels of one call of a graph, in order, at the traced sizes."""
    chains: dict[fx.Node, _Chain] = {}
    loaded: set[fx.Node] = set()
    places: dict[fx.Node, int] = {}
    made: list[Kernel | _Chain] = []
    for place, node in enumerate(graph.graph.nodes):
        places[node] = place
        if node.op == "placeholder" and node.name in graph.weights:
            loaded.add(node)
        if node.op != "call_function" or not output_tensors(node):
            continue
        if _depends_on(node, loaded):
            loaded.add(node)
            continue
        kind = kind_of(node, fuses)
        if kind is None:
            continue
        if not (fuses and kind in _FUSED):
            made.append(_kernel(node, kind, fuses, loaded))
            continue
        chain = _chain_of(node, chains, places)
        if chain is None:
            chain = _Chain(place, loaded)
            made.append(chain)
        chain.nodes.append(node)
        chains[node] = chain
    return [item.kernel() if isinstance(item, _Chain) else item for item in made]


def kind_of(node: fx.Node, fuses: bool) -> str | None:
    """The kind of kernel an op becomes; None where it becomes none."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet is None or packet in _NOTHING or (fuses and packet in VIEWS):
        return None
    if packet in VIEWS:
        return "copy" if packet in _STRIDED else "view"
    if packet is aten.pow and node.args[1] in (2, 0.5):
        return "arithmetic"
    return _KINDS.get(packet, "arithmetic")


@dataclass
class _Chain:
    """Ops that are one kernel; `first` is the place of its first in the graph."""

    first: int
    loaded: set[fx.Node]
    nodes: list[fx.Node] = field(default_factory=list)

    def kernel(self) -> Kernel:
        """What the ops compute, and the bytes that cross the border of the chain."""
        inside = set(self.nodes)
        read = {item for node in self.nodes for item in map(_source, tensor_inputs(node))}
        written = [node for node in self.nodes if not _readers(node) <= inside]
        whole = _kernel(self.nodes[-1], "arithmetic", True, self.loaded)
        whole.flops = math.fsum(node_flops(node) for node in self.nodes)
        whole.bytes = float(sum(_bytes(node) for node in (*(read - inside), *written)))
        whole.weight_bytes = float(sum(map(_bytes, read & self.loaded)))
        return whole


def _chain_of(
    node: fx.Node, chains: dict[fx.Node, _Chain], places: dict[fx.Node, int]
) -> _Chain | None:
    """The chain an op goes on: that of an input, where the others are there before it starts."""
    sources = [_source(item) for item in tensor_inputs(node)]
    for chain in (chains[source] for source in sources if source in chains):
        if all(chains.get(item) is chain or places[item] < chain.first for item in sources):
            return chain
    return None


def _source(node: fx.Node) -> fx.Node:
    """What a view is of; the node itself where it is none."""
    while _is_view(node) and tensor_inputs(node):
        node = tensor_inputs(node)[0]
    return node


def _readers(node: fx.Node) -> set[fx.Node]:
    """The nodes that read a value, through views."""
    found: set[fx.Node] = set()
    for user in node.users:
        found |= _readers(user) if _is_view(user) and user.users else {user}
    return found


def _is_view(node: fx.Node) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    return node.op == "call_function" and (packet is None or packet in VIEWS)


def _depends_on(node: fx.Node, loaded: set[fx.Node]) -> bool:
    """Whether a node is computed when the graph is loaded."""
    sizes = [size for item in output_tensors(node) for size in item.shape]
    fixed = all(isinstance(size, int) for size in sizes)
    return fixed and all(item in loaded for item in node.all_input_nodes)


def _kernel(node: fx.Node, kind: str, fuses: bool, loaded: set[fx.Node]) -> Kernel:
    inputs = tensor_inputs(node)
    values = output_tensors(node)
    made = sum(_numel(item) for item in values)
    taken = max((_numel(item.meta["val"]) for item in inputs), default=0)
    flops = node_flops(node)
    kernel = Kernel(
        kind=kind,
        flops=flops,
        bytes=float(sum(map(_bytes, (*inputs, node)))),
        weight_bytes=float(sum(map(_bytes, loaded.intersection(inputs)))),
        elements=float(max(made, taken) if kind in _BY_INPUT else made),
        dtype=str((inputs[0].meta["val"] if inputs else values[0]).dtype).removeprefix("torch."),
    )
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    if kind == "view":
        kernel.bytes = kernel.elements = 0.0
    elif kind == "copy":
        # What is moved is read, not the whole of what it is taken from.
        kernel.bytes = 2.0 * _bytes(node)
        kernel.weight_bytes = min(kernel.weight_bytes, float(_bytes(node)))
    elif kind == "attention":
        _set_attention(kernel, node, fuses)
    elif kind in ("product", "convolution"):
        kernel.rows = _least_dimension(node, kind)
    if not fuses:
        kernel.launches = _launches(node, packet)
        if packet is ours.solver_step:
            kernel.elements = flops
    return kernel


def _set_attention(kernel: Kernel, node: fx.Node, fuses: bool) -> None:
    """One element per score; of a cache, the half in use when half of an answer is there."""
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    inputs = tensor_inputs(node)
    query, keys = _sizes(inputs[0]), _sizes(inputs[1])[-2]
    if packet is ours.cached_attention:
        cached = float(sum(_bytes(item) for item in node.args[3:5] if isinstance(item, fx.Node)))
        keys = _sizes(node.args[3])[-2]  # type: ignore[arg-type]
        kernel.bytes -= 2 * cached
        if fuses or query[-2] == 1:
            kernel.flops *= 0.5
            kernel.bytes += 0.5 * cached
        else:
            # ONNX Runtime has no kernel for several rows that writes into the cache.
            kernel.bytes += 3 * cached
    kernel.elements = kernel.flops / (4.0 * query[-1])
    kernel.rows = min(query[-2], query[-1], keys)


def _least_dimension(node: fx.Node, kind: str) -> float:
    """The least of the rows, columns and inner dimension of a product."""
    out, inputs = _sizes(node), tensor_inputs(node)
    if kind == "convolution":
        weight = _sizes(inputs[1])
        return min(weight[0], math.prod(weight[1:]), math.prod(out[2:]))
    left = _sizes(inputs[0])
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    rows = math.prod(out[:-1]) if packet is aten.linear else math.prod(out[-2:-1])
    return max(1, min(rows, out[-1], left[-1]))


def _launches(node: fx.Node, packet: Any) -> int:
    """How many ops of an engine without fusion an op becomes."""
    if packet is ours.solver_step:
        pattern = node.args[4]
        return operations(str(pattern), len(node.args) > 6 and node.args[6] is not None) + 1
    if packet is aten.linear:
        return 1 if len(_sizes(node)) == 2 else 3
    return _LAUNCHES.get(packet, 1)


def _sizes(node: fx.Node) -> tuple[int, ...]:
    return tuple(hint(size) for size in node.meta["val"].shape)


def _numel(tensor: torch.Tensor) -> int:
    return math.prod(hint(size) for size in tensor.shape)


def _bytes(node: fx.Node) -> int:
    return sum(_numel(item) * item.dtype.itemsize for item in output_tensors(node))


_NOTHING = {
    aten.alias, aten.detach, aten.sym_size, aten.dropout, aten.contiguous, aten.lift_fresh_copy,
    aten.expand, aten.expand_as,
}  # fmt: skip

# Views that an engine which keeps all tensors contiguous copies.
_STRIDED = {
    aten.permute, aten.transpose, aten.t, aten.slice, aten.select, aten.split, aten.narrow,
    aten.split_with_sizes, aten.chunk, aten.unbind, aten.movedim, aten.diagonal, aten.unfold,
}  # fmt: skip

_KINDS: dict[Any, str] = {
    packet: kind
    for kind, packets in {
        "product": (aten.linear, aten.matmul, aten.mm, aten.bmm, aten.addmm, aten.einsum),
        "convolution": (
            aten.conv1d, aten.conv2d, aten.conv3d,
            aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d,
        ),
        "attention": (
            aten.scaled_dot_product_attention,
            ours.cached_attention, ours.tree_attention, ours.tile_attention,
        ),
        "softmax": (aten.softmax, aten._softmax, aten.log_softmax, aten._log_softmax),
        "norm": (
            aten.layer_norm, aten.native_layer_norm, aten.rms_norm, aten.group_norm,
            aten.native_group_norm, aten.batch_norm,
        ),
        "sum": (
            aten.sum, aten.mean, aten.amax, aten.amin, aten.max, aten.min, aten.argmax,
            aten.argmin, aten.var, aten.std, aten.any, aten.all, aten.cumsum, aten.norm,
            aten.linalg_vector_norm, aten.topk, aten.sort,
        ),
        "activation": (
            aten.exp, aten.expm1, aten.erf, aten.tanh, aten.sigmoid, aten.gelu, aten.silu,
            aten.softplus,
        ),
        "function": (aten.sin, aten.cos, aten.log, aten.atan, aten.tan, aten.acos, aten.asin),
        "power": (aten.pow,),
        "copy": (
            aten.clone, aten._to_copy, aten.to, aten.copy, aten.cat, aten.stack, aten.repeat,
            aten.repeat_interleave, aten.roll, aten.flip, aten.pad, aten.constant_pad_nd,
            aten.embedding, aten.index, aten.index_select, aten.index_put, aten.gather,
            aten.scatter, aten.slice_scatter, aten.select_scatter, aten.pixel_shuffle,
            aten.pixel_unshuffle, aten.tile, aten.upsample_nearest2d, aten.full, aten.full_like,
            aten.zeros, aten.zeros_like, aten.ones, aten.ones_like, aten.arange,
            ours.gather_rows, ours.scatter_rows,
        ),
    }.items()
    for packet in packets
}  # fmt: skip

_FUSED = frozenset({"arithmetic", "activation", "function", "power", "softmax", "norm", "sum"})
_BY_INPUT = frozenset({"softmax", "norm", "sum"})

# How many ops of ONNX Runtime an op becomes, where it is not one.
_LAUNCHES: dict[Any, int] = {
    aten.stack: 3,
    aten.rsqrt: 2,
    aten.expm1: 5,
    aten.group_norm: 5,
    aten.index: 3,
    aten.var: 4,
    ours.cached_attention: 12,
    ours.tree_attention: 20,
    ours.gather_rows: 3,
    ours.scatter_rows: 3,
}

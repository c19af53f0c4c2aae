"""Looks at an ONNX graph before ONNX Runtime does, and says how its weights are to be given.

ONNX Runtime checks what it loads, but not what it may do: custom domains, vendor blobs, sparse and
oversized constants pass. Here only what the exporter writes is allowed. What ONNX Runtime may
compute from constants while it loads a graph is limited by how much there is to compute.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from optimize.runtime import onnx_wire as wire
from optimize.runtime.errors import CorruptBundle, UnsafeBundle
from optimize.runtime.onnx_operators import DOMAINS, check_node
from optimize.runtime.tensors import StoredTensor

SHAPE_OPS: Mapping[str, int] = {
    "ConstantOfShape": 0,
    "Expand": 1,
    "Pad": 1,
    "Reshape": 1,
    "Resize": 3,
    "Tile": 1,
}
"""Ops that make tensors as large as a constant says → the input that says it."""

MAX_DEPTH = 4
MAX_NUMBERS = 64
"""Numbers of a constant that are looked at; shapes have fewer."""

MAX_INLINE_BYTES = 64 * 2**20
MAX_MADE_ELEMENTS = 2**30

FOLDING_BYTES = 256 * 2**20
"""What the constants computed while loading may take, beyond the size of the weights."""

MATMUL_OPS = frozenset({"Gemm", "MatMul", "Gather"})
SHARED_BYTES = 64 * 2**10
"""A weight this large, read by `MATMUL_OPS` only, is shared by all sessions as an input."""

ONNX_TYPES: Mapping[str, int] = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "bfloat16": 16,
}
"""Our dtype names → ONNX element types."""


@dataclass(frozen=True)
class Weights:
    """What ONNX Runtime is told about one graph.

    Attributes:
        shared: weights given as inputs.
        kept: weights it keeps itself.
        folding_bytes: most that one node may make when it is computed from constants at loading.
    """

    shared: tuple[wire.Tensor, ...]
    kept: tuple[str, ...]
    folding_bytes: int


def check_graph(
    model: memoryview, file: str, stored: Mapping[str, StoredTensor], weights_file: str
) -> Weights:
    """Refuses graphs the exporter would not write.

    Args:
        model: the ONNX protobuf.
        file: its name, for messages.
        stored: the tensors of the weights file.
        weights_file: the one external location allowed.
    Raises:
        CorruptBundle: not a protobuf, or a weight that is not where the graph says.
        UnsafeBundle: a domain, op, location or size that is not allowed.
    """
    try:
        return _check(model, stored, weights_file)
    except (CorruptBundle, UnsafeBundle) as error:
        raise type(error)(
            f"{file}: {error}; get the bundle again from a source you trust"
        ) from error


def _check(model: memoryview, stored: Mapping[str, StoredTensor], weights_file: str) -> Weights:
    graph = _only_graph(model)
    readers: dict[str, set[str]] = {}
    constants: dict[str, wire.Tensor] = {}
    external: dict[str, wire.Tensor] = {}
    inline = 0
    for tensor in _initializers(graph):
        if tensor.external is not None:
            _check_external(tensor, stored, weights_file)
            external[tensor.name] = tensor
        else:
            inline += len(tensor.raw)
            constants[tensor.name] = tensor
    if inline > MAX_INLINE_BYTES:
        raise UnsafeBundle(f"found {inline} bytes of inline constants, expected weights outside")
    fixed = {"", *constants, *external}
    folded = 0
    for node, depth in _nodes(graph, 0):
        for name in node.inputs:
            readers.setdefault(name, set()).add(node.op_type if depth == 0 else "subgraph")
        if fixed.issuperset(node.inputs) and not node.subgraphs:
            fixed.update(node.outputs)
            folded += 1
        if node.op_type == "Constant" and node.tensors:
            constants[node.outputs[0]] = wire.read_tensor(node.tensors[0])
        _check_made_size(node, constants)
    shared = tuple(
        tensor
        for name, tensor in external.items()
        if readers.get(name, {""}) <= MATMUL_OPS and stored[name].array.nbytes >= SHARED_BYTES
    )
    moved = {tensor.name for tensor in shared}
    weights = sum(stored[name].array.nbytes for name in external)
    return Weights(
        shared,
        tuple(name for name in external if name not in moved),
        (FOLDING_BYTES + weights) // max(1, folded),
    )


def _only_graph(model: memoryview) -> memoryview:
    graphs = []
    for item in wire.fields(model):
        if item.number == wire.MODEL_GRAPH:
            graphs.append(item.data())
        elif item.number == wire.MODEL_OPSETS:
            domain = "".join(part.text() for part in wire.fields(item.data()) if part.number == 1)
            if domain not in DOMAINS:
                raise UnsafeBundle(
                    f"found domain {domain!r} at an opset import, expected the standard operators"
                )
        elif item.number in (wire.MODEL_FUNCTIONS, wire.MODEL_TRAINING):
            raise UnsafeBundle("found a model function or training section, expected neither")
    if len(graphs) != 1:
        raise CorruptBundle(f"found {len(graphs)} graphs, expected one")
    return graphs[0]


def _initializers(graph: memoryview) -> Iterator[wire.Tensor]:
    seen: set[str] = set()
    for item in wire.fields(graph):
        if item.number == wire.GRAPH_SPARSE:
            raise UnsafeBundle("found a sparse initializer, expected dense ones")
        if item.number == wire.GRAPH_INITIALIZER:
            tensor = wire.read_tensor(item.data())
            if tensor.name in seen:
                raise CorruptBundle(f"found initializer {tensor.name!r} twice")
            seen.add(tensor.name)
            yield tensor


def _nodes(graph: memoryview, depth: int) -> Iterator[tuple[wire.Node, int]]:
    if depth > MAX_DEPTH:
        raise UnsafeBundle(f"found subgraphs nested more than {MAX_DEPTH} deep")
    for item in wire.fields(graph):
        if item.number != wire.GRAPH_NODE:
            if depth and item.number in (wire.GRAPH_SPARSE, wire.GRAPH_INITIALIZER):
                raise UnsafeBundle("found an initializer in a subgraph, expected none")
            continue
        node = wire.read_node(item.data())
        check_node(node)
        if node.sparse:
            raise UnsafeBundle(
                f"found a sparse constant at node {node.name!r}, expected a dense one"
            )
        for tensor in node.tensors:
            if wire.read_tensor(tensor).external is not None:
                raise UnsafeBundle(f"found external data in an attribute of node {node.name!r}")
        yield node, depth
        for subgraph in node.subgraphs:
            yield from _nodes(subgraph, depth + 1)


def _check_external(
    tensor: wire.Tensor, stored: Mapping[str, StoredTensor], weights_file: str
) -> None:
    place = tensor.external or {}
    if place.get("location") != weights_file:
        raise UnsafeBundle(
            f"found weight {tensor.name!r} in {place.get('location')!r}, expected {weights_file!r}"
        )
    found = stored.get(tensor.name)
    if found is None:
        raise CorruptBundle(f"found weight {tensor.name!r}, which {weights_file} does not hold")
    expected = (
        ONNX_TYPES[found.dtype],
        found.array.shape,
        str(found.offset),
        str(found.array.nbytes),
    )
    if (tensor.data_type, tensor.dims, place.get("offset"), place.get("length")) != expected:
        raise CorruptBundle(
            f"found weight {tensor.name!r} of another type, shape or place than {weights_file} has"
        )


def _check_made_size(node: wire.Node, constants: Mapping[str, wire.Tensor]) -> None:
    """Refuses a node whose constant inputs ask for a giant tensor; at loading or at a request."""
    if node.op_type == "Range":
        parts = [_numbers(constants, name) for name in node.inputs]
        if not all(part is not None and len(part) == 1 for part in parts):
            return
        (start,), (limit,), (delta,) = (part or (0,) for part in parts)
        made = abs(limit - start) // max(1, abs(delta))
    else:
        position = SHAPE_OPS.get(node.op_type)
        if position is None or len(node.inputs) <= position:
            return
        sizes = _numbers(constants, node.inputs[position])
        if sizes is None:
            return
        if node.op_type == "Pad":
            half = len(sizes) // 2
            sizes = tuple(
                max(1, abs(before) + abs(after))
                for before, after in zip(sizes[:half], sizes[half:], strict=False)
            )
        made = math.prod(map(abs, sizes))
    if made > MAX_MADE_ELEMENTS:
        raise UnsafeBundle(f"found {node.op_type} making {made} elements at node {node.name!r}")


def _numbers(constants: Mapping[str, wire.Tensor], name: str) -> tuple[int, ...] | None:
    """The values of an int64 constant, None where it is none or has many."""
    tensor = constants.get(name)
    if tensor is None or tensor.data_type != ONNX_TYPES["int64"]:
        return None
    if tensor.raw_data is None:
        return tensor.numbers[:MAX_NUMBERS]
    raw = bytes(tensor.raw_data[: 8 * MAX_NUMBERS])
    return tuple(np.frombuffer(raw[: len(raw) // 8 * 8], dtype="<i8").tolist())

"""Looks at an ONNX graph before ONNX Runtime does, and says how its weights are to be given.

ONNX Runtime checks what it loads, but not what it may do: custom domains, vendor blobs, sparse and
oversized constants pass. Here only what the exporter writes is allowed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from optimize.runtime import onnx_wire as wire
from optimize.runtime.errors import CorruptBundle, UnsafeBundle
from optimize.runtime.tensors import StoredTensor

DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
REFUSED_OPS = frozenset({"EPContext", "PyOp", "ExternalStream"})
SHAPE_OPS: Mapping[str, int] = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Reshape": 1}
"""Ops that make tensors as large as a constant says → the input that says it."""

MAX_DEPTH = 4
MAX_INLINE_BYTES = 64 * 2**20
MAX_MADE_ELEMENTS = 2**30

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
    """The weights one graph names: those shared as inputs, and those ONNX Runtime keeps itself."""

    shared: tuple[wire.Tensor, ...]
    kept: tuple[str, ...]


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
    graphs = []
    for item in wire.fields(model):
        if item.number == wire.MODEL_GRAPH:
            graphs.append(item.data())
        elif item.number == wire.MODEL_OPSETS:
            domain = "".join(part.text() for part in wire.fields(item.data()) if part.number == 1)
            _check_domain(domain, "an opset import")
        elif item.number in (wire.MODEL_FUNCTIONS, wire.MODEL_TRAINING):
            raise UnsafeBundle("found a model function or training section, expected neither")
    if len(graphs) != 1:
        raise CorruptBundle(f"found {len(graphs)} graphs, expected one")
    readers: dict[str, set[str]] = {}
    constants: dict[str, wire.Tensor] = {}
    external: dict[str, wire.Tensor] = {}
    inline = 0
    for tensor in _initializers(graphs[0]):
        if tensor.external is not None:
            _check_external(tensor, stored, weights_file)
            external[tensor.name] = tensor
        else:
            inline += len(tensor.raw)
            constants[tensor.name] = tensor
    if inline > MAX_INLINE_BYTES:
        raise UnsafeBundle(f"found {inline} bytes of inline constants, expected weights outside")
    for node, depth in _nodes(graphs[0], 0):
        for name in node.inputs:
            readers.setdefault(name, set()).add(node.op_type if depth == 0 else "subgraph")
        _check_made_size(node, constants)
    shared = tuple(
        tensor
        for name, tensor in external.items()
        if readers.get(name, {""}) <= MATMUL_OPS and stored[name].array.nbytes >= SHARED_BYTES
    )
    moved = {tensor.name for tensor in shared}
    return Weights(shared, tuple(name for name in external if name not in moved))


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
        _check_domain(node.domain, f"node {node.name!r}")
        if node.op_type in REFUSED_OPS:
            raise UnsafeBundle(
                f"found op {node.op_type} at node {node.name!r}, which is not allowed"
            )
        for tensor in node.tensors:
            if wire.read_tensor(tensor).external is not None:
                raise UnsafeBundle(f"found external data in an attribute of node {node.name!r}")
        yield node, depth
        for subgraph in node.subgraphs:
            yield from _nodes(subgraph, depth + 1)


def _check_domain(domain: str, where: str) -> None:
    if domain not in DOMAINS:
        raise UnsafeBundle(f"found domain {domain!r} at {where}, expected the standard operators")


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
    position = SHAPE_OPS.get(node.op_type)
    if position is None or len(node.inputs) <= position:
        return
    shape = constants.get(node.inputs[position])
    if shape is None or shape.data_type != ONNX_TYPES["int64"] or shape.raw_data is None:
        return
    raw = bytes(shape.raw_data)
    sizes = np.frombuffer(raw[: len(raw) // 8 * 8], dtype="<i8")
    made = int(np.prod([abs(int(size)) for size in sizes], dtype=object)) if sizes.size else 1
    if made > MAX_MADE_ELEMENTS:
        raise UnsafeBundle(f"found {node.op_type} making {made} elements at node {node.name!r}")

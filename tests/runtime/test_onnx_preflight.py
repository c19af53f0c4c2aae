"""Graphs the exporter would not write are refused before ONNX Runtime sees them."""

import contextlib

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimize.runtime import onnx_wire
from optimize.runtime.errors import CorruptBundle, OptimizeError, UnsafeBundle
from optimize.runtime.onnx_preflight import check_graph
from optimize.runtime.tensors import StoredTensor

FILE = "weights.safetensors"
WEIGHT = np.arange(256 * 128, dtype=np.float32).reshape(128, 256) / 1000
STORED = {"w": StoredTensor("float32", WEIGHT, 64)}


def external(name="w", location=FILE, dims=(128, 256), offset=64, length=WEIGHT.nbytes, kind=1):
    tensor = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def model(nodes=None, initializers=(), **arguments):
    graph_nodes = nodes or [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]
    graph = helper.make_graph(
        graph_nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 256])],
        [helper.make_tensor_value_info("y", 1, None)],
        list(initializers),
    )
    opsets = arguments.pop("opsets", [helper.make_opsetid("", 23)])
    if not nodes:
        graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ["n", 128]))
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, **arguments)


def check(proto):
    return check_graph(memoryview(proto.SerializeToString()), "graphs/g.onnx", STORED, FILE)


def test_a_large_matrix_is_shared_and_a_convolution_kernel_is_kept():
    weights = check(model(initializers=[external()]))
    assert [tensor.name for tensor in weights.shared] == ["w"]
    assert weights.kept == ()
    conv = helper.make_node("Conv", ["x", "w"], ["y"])
    assert check(model([conv], [external()])).kept == ("w",)


def test_the_rewritten_model_takes_the_weight_as_an_input_and_computes_the_same():
    proto = model(initializers=[external()])
    raw = proto.SerializeToString()
    weights = check(proto)
    rewritten = onnx_wire.replace_initializers(memoryview(raw), weights.shared)
    onnx.checker.check_model(onnx.load_from_string(rewritten), full_check=True)
    session = ort.InferenceSession(rewritten)
    x = np.ones((3, 256), np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x, "w": WEIGHT})[0], x @ WEIGHT.T, 1e-5)


def node(op_type, **attributes):
    return helper.make_node(op_type, ["x"], ["y"], name="bad", **attributes)


def _deep(depth):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "g",
        [],
        [helper.make_tensor_value_info("z", 1, None)],
    )
    for _ in range(depth):
        inner = helper.make_node("If", ["x"], ["z"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([inner], "g", [], [helper.make_tensor_value_info("z", 1, None)])
    return graph.node[0]


FUNCTION = helper.make_function(
    "",
    "F",
    ["a"],
    ["b"],
    [helper.make_node("Identity", ["a"], ["b"])],
    [helper.make_opsetid("", 23)],
)


def bomb(op_type, inputs, shape):
    constant = numpy_helper.from_array(np.array(shape, np.int64), "shape")
    return model([helper.make_node(op_type, inputs, ["y"], name="bad")], [constant])


@pytest.mark.parametrize(
    ("proto", "kind", "message"),
    [
        (model([node("X", domain="evil")]), UnsafeBundle, "domain 'evil' at node 'bad'"),
        (model(opsets=[helper.make_opsetid("evil", 1)]), UnsafeBundle, "domain 'evil'"),
        (model([node("EPContext")]), UnsafeBundle, "EPContext"),
        (model([_deep(6)]), UnsafeBundle, "nested more than 4 deep"),
        (model(initializers=[external(location="../secret")]), UnsafeBundle, "'../secret'"),
        (model(initializers=[external(location="/etc/passwd")]), UnsafeBundle, "/etc/passwd"),
        (model(initializers=[external(name="other")]), CorruptBundle, "does not hold"),
        (model(initializers=[external(offset=0)]), CorruptBundle, "another type, shape or place"),
        (model(initializers=[external(dims=(256, 128))]), CorruptBundle, "another type, shape"),
        (model(initializers=[external(length=8)]), CorruptBundle, "another type, shape or place"),
        (model(initializers=[external(kind=6)]), CorruptBundle, "another type, shape or place"),
        (model(initializers=[external(), external()]), CorruptBundle, "twice"),
        (model([helper.make_node("Constant", [], ["y"], value=external())]), UnsafeBundle,
         "data in an attribute"),
        (bomb("ConstantOfShape", ["shape"], [2**20, 2**20]), UnsafeBundle, "making 1099511627776"),
        (bomb("Expand", ["x", "shape"], [2**31, 256]), UnsafeBundle, "Expand making"),
        (bomb("Tile", ["x", "shape"], [2**31, 1]), UnsafeBundle, "Tile making"),
        (model(functions=[FUNCTION]), UnsafeBundle, "function"),
    ],
    ids=lambda item: item if isinstance(item, str) else None,
)  # fmt: skip
def test_hostile_graphs_are_refused_by_name(proto, kind, message):
    """C12, C13, C14"""
    with pytest.raises(kind, match=message) as caught:
        check(proto)
    assert str(caught.value).startswith("graphs/g.onnx: ")


def test_a_sparse_initializer_is_refused():
    """C12"""
    proto = model()
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**28]))
    with pytest.raises(UnsafeBundle, match="sparse"):
        check(proto)


def test_mutated_graphs_raise_our_errors_only():
    raw = model(initializers=[external()]).SerializeToString()
    for place in range(len(raw)):
        for damaged in (raw[:place], raw[:place] + bytes([raw[place] ^ 0x81]) + raw[place + 1 :]):
            with contextlib.suppress(OptimizeError):
                weights = check_graph(memoryview(damaged), "g", STORED, FILE)
                onnx_wire.replace_initializers(memoryview(damaged), weights.shared)

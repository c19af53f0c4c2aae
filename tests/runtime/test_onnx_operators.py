"""The operators of bundles: the table says what ONNX says, and what it does not have is refused."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import defs, helper, numpy_helper

from optimize.export import onnx_graphs as exporting
from optimize.export.onnx_builder import OPSET
from optimize.ir.errors import UnsupportedOpError
from optimize.runtime.errors import UnsafeBundle
from optimize.runtime.onnx_operators import ANY, OPERATORS, OUTPUTS
from optimize.runtime.onnx_preflight import check_graph

ROOT = Path(__file__).parents[2]


def model(nodes, constants=(), sparse=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 4])],
        [helper.make_tensor_value_info("y", 1, None)],
        list(constants),
        sparse_initializer=list(sparse),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def check(proto):
    return check_graph(memoryview(proto.SerializeToString()), "g", {}, "weights.safetensors")


def constant(name, values, kind=np.int64):
    return numpy_helper.from_array(np.array(values, kind), name)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_the_table_says_what_onnx_says(name):
    schema = defs.get_schema(name, OPSET, "")
    required, most = OPERATORS[name]
    option = defs.OpSchema.FormalParameterOption
    single = sum(item.option == option.Single for item in schema.inputs)
    variadic = any(item.option == option.Variadic for item in schema.inputs)
    if name == "Loop":
        assert (required, most) == (0, ANY), "its count and its condition may be left out"
    elif variadic:
        assert (required, most) == (ANY, ANY)
    else:
        assert required == single
        assert most >= schema.max_input
    least, greatest = OUTPUTS.get(name, (1, 1))
    if least != ANY:
        assert least == max(1, sum(item.option == option.Single for item in schema.outputs))
        # Further outputs of BatchNormalization are for training.
        assert greatest == schema.max_output or name == "BatchNormalization"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            helper.make_node("Max", ["x", ""], ["y"], name="bad"),
            "Max with inputs .0. at node 'bad'",
        ),
        (helper.make_node("Sum", [], ["y"], name="bad"), "Sum with inputs"),
        (helper.make_node("Add", ["x"], ["y"], name="bad"), "Add with inputs .0. at"),
        (helper.make_node("Abs", ["x", "x"], ["y"], name="bad"), "expected 1 to 1"),
        (helper.make_node("Abs", ["x"], [], name="bad"), "Abs with outputs .. at"),
        (helper.make_node("Abs", ["x"], ["y", "z"], name="bad"), "Abs with outputs .0, 1. at"),
        (helper.make_node("Split", ["x"], ["", "y"], num_outputs=2), "Split with outputs .1. at"),
        (helper.make_node("TopK", ["x", "x"], ["", "y"]), "TopK with outputs .1. at"),
        (
            helper.make_node("Split", ["x"], ["y", "z"], num_outputs=3, name="bad"),
            "into .3. with 2",
        ),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2**31, 1]), "kernel_shape"),
        (helper.make_node("Conv", ["x", "x"], ["y"], pads=[0, -1]), "pads"),
        (helper.make_node("Conv", ["x", "x"], ["y"], strides=[0, 2**40]), "strides"),
        (helper.make_node("Einsum", ["x"], ["y"], equation="ij-"), "op Einsum"),
        (helper.make_node("TfIdfVectorizer", ["x"], ["y"]), "op TfIdfVectorizer"),
        (helper.make_node("LpPool", ["x"], ["y"]), "op LpPool"),
        (helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft"), "op EPContext"),
        (helper.make_node("Tokenizer", ["x"], ["y"], domain="ai.onnx.ml"), "domain 'ai.onnx.ml'"),
    ],
    ids=lambda item: item.op_type if isinstance(item, onnx.NodeProto) else "",
)
def test_nodes_that_kernels_are_not_made_for_are_refused(node, message):
    """C12, C13: among them the classes that fuzzing found to end a process or to hang it."""
    with pytest.raises(UnsafeBundle, match=message):
        check(model([node]))


BIG = 2**31


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([helper.make_node("ConstantOfShape", ["s"], ["y"])], [constant("s", [BIG, 2])]),
        (
            [helper.make_node("Expand", ["x", "s"], ["y"])],
            [helper.make_tensor("s", 7, [2], [BIG, 2])],
        ),
        (
            [
                helper.make_node("Constant", [], ["s"], value=constant("v", [BIG, 2])),
                helper.make_node("Tile", ["x", "s"], ["y"]),
            ],
            [],
        ),
        (
            [helper.make_node("Range", ["a", "b", "c"], ["y"])],
            [constant("a", 0), constant("b", 2**40), constant("c", 1)],
        ),
        (
            [helper.make_node("Range", ["a", "b", "c"], ["y"])],
            [constant("a", 2**40), constant("b", 0), constant("c", -2)],
        ),
        ([helper.make_node("Pad", ["x", "p"], ["y"])], [constant("p", [0, 0, 2**33, 0])]),
        ([helper.make_node("Resize", ["x", "", "", "s"], ["y"])], [constant("s", [BIG, 4])]),
    ],
    ids=["raw", "int64_data", "constant-node", "range", "range-down", "pad", "resize"],
)
def test_giant_tensors_that_a_constant_asks_for_are_refused(nodes, constants):
    """C12"""
    with pytest.raises(UnsafeBundle, match=r"making \d+ elements"):
        check(model(nodes, constants))


def test_sizes_inside_subgraphs_count():
    """C12"""
    inner = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["s"], ["z"])],
        "g",
        [],
        [helper.make_tensor_value_info("z", 1, None)],
    )
    outer = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    with pytest.raises(UnsafeBundle, match="ConstantOfShape making"):
        check(model([outer], [constant("s", [BIG, BIG])]))


def test_a_sparse_constant_in_an_attribute_is_refused():
    """C12"""
    values, places = constant("v", [1.0], np.float32), constant("i", [0])
    sparse = helper.make_sparse_tensor(values, places, [2**28])
    node = helper.make_node("Constant", [], ["y"], sparse_value=sparse)
    with pytest.raises(UnsafeBundle, match="found a sparse constant"):
        check(model([node]))


def test_inline_constants_have_a_limit():
    """C24: weights lie outside, so no protobuf comes near its limit of 2 GiB."""
    with pytest.raises(UnsafeBundle, match="bytes of inline constants, expected weights outside"):
        check(model([helper.make_node("Abs", ["x"], ["y"])], [constant("c", np.zeros(9 * 2**20))]))


def test_what_is_computed_at_loading_shares_one_budget():
    few = [helper.make_node("Neg", ["c"], ["y"])]
    many = [helper.make_node("Neg", ["c"], [f"y{number}"]) for number in range(64)]
    one, all_ = check(model(few, [constant("c", 1)])), check(model(many, [constant("c", 1)]))
    assert one.folding_bytes == 64 * all_.folding_bytes == 256 * 2**20


BOMBS = {
    # Every shape is itself computed, so no size is written anywhere.
    "shape": "make_node('Mul', ['k', 'k'], ['s']); make_node('ConstantOfShape', ['s'], ['z'])",
    "double": "; ".join(
        f"make_node('Concat', ['v{number}', 'v{number}'], ['v{number + 1}'], axis=0)"
        for number in range(28)
    ).replace("'v0'", "'f'").replace("'v28'", "'z'"),
    "outer": "make_node('Range', ['a', 'n', 'one'], ['r']); make_node('Cast', ['r'], ['q'], to=1); "
    "make_node('Unsqueeze', ['q', 'axis'], ['p']); make_node('Add', ['p', 'q'], ['z'])",
    "where": "make_node('Reshape', ['k', 'axis1'], ['s']); make_node('Mul', ['s', 's'], ['t']); "
    "make_node('Expand', ['f', 't'], ['z'])",
}  # fmt: skip

LOADER = """
import resource, sys
import numpy as np
from onnx import helper, numpy_helper
from onnx.helper import make_node
from optimize.runtime.manifest import GraphEntry
from optimize.runtime.onnx_engine import OnnxGraphs

def constant(name, values, kind=np.int64):
    return numpy_helper.from_array(np.array(values, kind), name)

nodes = [eval(text, {"make_node": make_node}) for text in sys.argv[1].split("; ")]
nodes += [make_node("ReduceMax", ["z"], ["m"], keepdims=0), make_node("Cast", ["m"], ["c"], to=1)]
nodes += [make_node("Add", ["x", "c"], ["y"])]
graph = helper.make_graph(
    nodes, "g",
    [helper.make_tensor_value_info("x", 1, ["n", 4])],
    [helper.make_tensor_value_info("y", 1, None)],
    [constant("k", [2**14]), constant("f", [1.0], np.float32), constant("a", 0),
     constant("n", 2**14), constant("one", 1), constant("axis", [1]), constant("axis1", [1])],
)
proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
entry = {"g": GraphEntry(file="g.onnx", inputs={"x": "x"}, outputs={"y": "y"})}
small = helper.make_model(
    helper.make_graph([make_node("Neg", ["x"], ["y"])], "g", graph.input, graph.output),
    opset_imports=[helper.make_opsetid("", 23)], ir_version=10,
)
OnnxGraphs({"g": small.SerializeToString()}, entry, {}, threads=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
OnnxGraphs({"g": proto.SerializeToString()}, entry, {}, threads=1)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("name", BOMBS)
def test_loading_a_memory_bomb_takes_no_memory(name):
    """C12: each asks for a gigabyte in a few hundred bytes, to be computed while it is loaded."""
    done = subprocess.run(
        [sys.executable, "-c", LOADER, BOMBS[name]],
        capture_output=True,
        text=True,
        cwd=ROOT,
        # The second line of defence: were it computed, the child would fail, not the machine.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (3 * 2**30, 3 * 2**30)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # Up to the budget of 256 MiB may be made, and freed; the bombs ask for 1024 MiB.
    assert int(done.stdout) < 600


def test_the_exporter_refuses_what_bundles_may_not_hold(tiny_program, monkeypatch):
    monkeypatch.setattr(exporting, "DOMAINS", {"": {"Gemm": (2, 3)}})
    with pytest.raises(UnsupportedOpError, match="step: found ONNX operator ai.onnx.[A-Z]"):
        exporting.onnx_graphs(tiny_program(), "step", int8=False)

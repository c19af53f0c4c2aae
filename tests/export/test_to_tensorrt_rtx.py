"""Graphs of bundles become TensorRT-RTX engines on a machine without a GPU."""

import importlib
import math
import sys
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

pytest.importorskip(
    "tensorrt_rtx_bindings", reason="tensorrt-rtx-cu13-bindings is not installed (extra rtx)"
)

from optimize.capture.capture_model import capture_model
from optimize.capture.from_denoiser import capture
from optimize.commands.models import load_model
from optimize.export.bundle import export_bundle
from optimize.export.to_tensorrt_rtx import Engine, build_engine
from optimize.ir.errors import InputModelError, UnsupportedOpError
from optimize.ir.program import Program
from optimize.passes.pipeline import run_passes
from optimize.passes.tile_attention import TileAttention
from optimize.recipes.zoo.families import example
from optimize.recipes.zoo.wan_shaped import wan_shaped
from optimize.runtime.errors import ResourceError


def exported(program: Program, folder: Path) -> Path:
    return export_bundle(program, folder / "bundle") / "graphs" / "denoiser.onnx"


def check_engine(engine: Engine, path: Path, tokens: int) -> None:
    """All weights are inside, attention stays attention, and there is no mask of all tokens."""
    model = onnx.load(path, load_external_data=False)
    weights = {t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL}
    constants = [
        layer for layer in engine.layers if layer.kind == "CONSTANT" and layer.name not in weights
    ]
    assert len(engine.content) > (path.parent / "weights.safetensors").stat().st_size
    nodes = [node.name for node in model.graph.node if node.op_type == "Attention"]
    attention = [layer.name for layer in engine.layers if layer.kind == "ATTENTION_INPUT"]
    assert attention == [f"{name}_AttentionInput" for name in nodes] and nodes
    assert max(math.prod(layer.shape) for layer in constants) < tokens**2


SLOW = pytest.mark.slow

# tokens: all that attend to one another.
VIDEO = [
    pytest.param("wan", 48),
    pytest.param("cogvideox", 55),
    pytest.param("hunyuanvideo", 55, marks=SLOW),
]


@pytest.mark.parametrize(("name", "tokens"), VIDEO)
def test_video_denoisers_become_engines(name, tokens, captured, tmp_path):
    _, program = captured(name, torch.float32)
    path = exported(program, tmp_path)
    engine = build_engine(path)
    assert engine.capabilities == ("SM89", "SM120") and engine.sizes == {"batch": (1, 2, 4)}
    check_engine(engine, path, tokens)


def test_trained_denoiser_and_its_solver_become_engines(tmp_path):
    zoo = load_model("zoo:digits-dit")
    program = capture_model(zoo.model, zoo.example_inputs, loop=zoo.loop)
    path = exported(program, tmp_path)
    check_engine(build_engine(path, capabilities=["SM120"]), path, 16)
    solver = build_engine(path.with_name("solver.onnx"), sizes={"batch": (1, 1, 1)})
    assert {layer.kind for layer in solver.layers} <= {"ELEMENTWISE", "SHUFFLE", "SLICE"}
    assert solver.sizes == {"batch": (1, 1, 1)}


def with_tiles(program: Program, references: int) -> Program:
    return run_passes(program, [TileAttention(references=references)], verify=False)


def attention_nodes(path: Path) -> int:
    model = onnx.load(path, load_external_data=False)
    return sum(node.op_type == "Attention" for node in model.graph.node)


# Five frames of 24 tokens; text beside them.
TILED = [
    pytest.param("wan", 120, 2 * 2 + 2),
    pytest.param("cogvideox", 127, 2 * 2),
    pytest.param("hunyuanvideo", 127, 3 * 2 + 1, marks=SLOW),
]


@pytest.mark.parametrize(("name", "tokens", "nodes"), TILED)
def test_tile_attention_becomes_attention_layers(name, tokens, nodes, tmp_path):
    made = example(name, frames=5)
    program = capture(made.module, made.inputs, loop=made.loop(4))
    path = exported(with_tiles(program, 2), tmp_path)
    assert attention_nodes(path) == nodes
    check_engine(build_engine(path), path, tokens)


def test_trained_video_model_with_tiles_becomes_an_engine(tmp_path):
    zoo = load_model("zoo:moving-digits")
    program = capture_model(zoo.model, zoo.example_inputs, loop=zoo.loop)
    path = exported(with_tiles(program, 2), tmp_path)
    assert attention_nodes(path) == 4 * 2
    check_engine(build_engine(path), path, 512)


def test_wan_shaped_model_of_4096_tokens_with_tiles_becomes_an_engine(tmp_path):
    made = wan_shaped(8, 32, 64, layers=1, dtype=torch.float16)
    program = capture(made.module, made.inputs, loop=made.loop(4))
    path = exported(with_tiles(program, 1), tmp_path)
    engine = build_engine(path, fused_attention=True)
    assert engine.capabilities == ("SM89", "SM120")
    check_engine(engine, path, 4096)


@cache
def small_wan(dtype: torch.dtype) -> Program:
    """One layer over 4 frames of 24 tokens; cross-attention beside the self-attention."""
    made = wan_shaped(4, 8, 12, layers=1, dtype=dtype)
    return capture(made.module, made.inputs, loop=made.loop(4))


@pytest.mark.parametrize(("references", "nodes"), [(1, 3), (2, 3)])
def test_float16_attention_gets_fused_kernels(references, nodes, tmp_path):
    path = exported(with_tiles(small_wan(torch.float16), references), tmp_path)
    assert attention_nodes(path) == nodes
    engine = build_engine(path, fused_attention=True)
    check_engine(engine, path, 96)
    assert {layer.dtype for layer in engine.layers if "ATTENTION" in layer.kind} == {"HALF"}


def test_refuses_float32_attention_where_it_shall_be_fused(tmp_path):
    path = exported(small_wan(torch.float32), tmp_path)
    with pytest.raises(InputModelError, match="for SM89: .*not supported by a dedicated kernel"):
        build_engine(path, capabilities=["SM89"], fused_attention=True)


@pytest.fixture
def two_nodes(tmp_path) -> Path:
    """Relu and Det over x [batch, 3, 3]; Det is an op that TensorRT-RTX lacks."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])
    nodes = [
        helper.make_node("Relu", ["x"], ["z"], name="fine"),
        helper.make_node("Det", ["z"], ["y"], name="strange"),
    ]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y])), tmp_path / "two.onnx")
    return tmp_path / "two.onnx"


def test_names_the_node_that_the_parser_refuses(two_nodes):
    with pytest.raises(UnsupportedOpError, match=r"node 'strange' \(Det\): UNSUPPORTED_NODE"):
        build_engine(two_nodes)


def test_says_that_a_file_its_weights_or_a_graph_is_missing(tmp_path):
    (tmp_path / "graph.onnx").write_bytes(b"nonsense")
    with pytest.raises(InputModelError, match="cannot read the file .*Failed to parse"):
        build_engine(tmp_path / "graph.onnx")
    path = exported(small_wan(torch.float16), tmp_path)
    (path.parent / "weights.safetensors").unlink()
    with pytest.raises(InputModelError, match="Failed to import initializer.*export the bundle"):
        build_engine(path)
    with pytest.raises(ResourceError, match="nothing.onnx: found no such file"):
        build_engine(tmp_path / "nothing.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capabilities": ["SM12"]}, "found SM12, expected some of .*SM89"),
        ({"capabilities": []}, "capabilities: found none"),
        ({"sizes": {}}, "sizes: found none, expected 'batch' among them, .* of input 'x'"),
        ({"sizes": {"batch": (2, 1, 4)}}, r"found \(2, 1, 4\) for 'batch', expected 1 <= least"),
    ],
)
def test_wrong_options_are_named(options, message, tmp_path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph), tmp_path / "relu.onnx")
    with pytest.raises(ValueError, match=message):
        build_engine(tmp_path / "relu.onnx", **options)


def test_missing_package_is_named_with_its_extra(monkeypatch):
    name = "optimize.export.to_tensorrt_rtx"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ResourceError, match=r"pip install 'optimize\[rtx\]'"):
        importlib.import_module(name)

"""Engines of TensorRT, as far as they can be checked without it: the calls that are made.

TensorRT-RTX's module stands in for TensorRT's: its builder, network and parser have the same API.
"""

import types

import onnx
import pytest
import torch

from optimize.capture.from_denoiser import capture
from optimize.export import tensorrt_plugins, to_tensorrt
from optimize.export.to_onnx import graph_to_onnx, used_weights
from optimize.export.weights import layout_weights
from optimize.passes.pipeline import run_passes
from optimize.passes.tile_attention import TileAttention
from optimize.recipes.zoo.families import example
from optimize.runtime import machine
from optimize.runtime.errors import DeviceError, ResourceError

OP = "optimize::tile_attention"


@pytest.fixture
def registered(monkeypatch):
    """What the plugins were registered for; nothing is registered with a library."""
    calls: list[int] = []
    monkeypatch.setattr(tensorrt_plugins, "_registered", set())
    for module in tensorrt_plugins.plugins().values():
        monkeypatch.setattr(module, "register", calls.append)
    return calls


def test_every_kernel_folder_with_a_plugin_is_found():
    found = tensorrt_plugins.plugins()
    assert OP in found
    assert all(callable(module.register) for module in found.values())


def test_plugins_are_registered_once_in_a_process(registered):
    assert tensorrt_plugins.register_plugins(90) == tensorrt_plugins.register_plugins(90)
    assert registered == [90] * len(tensorrt_plugins.plugins())


def test_without_the_library_or_a_gpu_it_says_so(monkeypatch, tmp_path, registered):
    monkeypatch.setattr(to_tensorrt, "MODULE", "no_such_tensorrt")
    with pytest.raises(ResourceError, match=r"pip install 'optimize\[tensorrt\]'"):
        to_tensorrt.build_engine(tmp_path / "g.onnx", sizes={})
    monkeypatch.setattr(to_tensorrt, "MODULE", "types")
    monkeypatch.setattr(machine, "gpu_capability", lambda: None)
    with pytest.raises(DeviceError, match="found no NVIDIA GPU, expected the one the engine is fo"):
        to_tensorrt.build_engine(tmp_path / "g.onnx", sizes={})
    assert not registered


def test_flags_ask_for_strong_types_and_compiled_plugins():
    names = types.SimpleNamespace(STRONGLY_TYPED=1, PREFER_AOT_PYTHON_PLUGINS=4)
    library = types.SimpleNamespace(NetworkDefinitionCreationFlag=names)
    assert to_tensorrt._flags(library) == 2 + 16
    library = types.SimpleNamespace(NetworkDefinitionCreationFlag=types.SimpleNamespace())
    assert to_tensorrt._flags(library) == 0


@pytest.mark.skipif(
    machine.version_of("tensorrt_rtx") is None,
    reason="tensorrt-rtx-cu13-bindings is not installed (extra rtx)",
)
def test_an_engine_is_built_by_the_calls_both_libraries_have(monkeypatch, tiny_bundle, registered):
    monkeypatch.setattr(to_tensorrt, "MODULE", "tensorrt_rtx_bindings")
    monkeypatch.setattr(machine, "gpu_capability", lambda: "SM89")
    # TensorRT-RTX has no flag for plugins, and builds for this capability without a GPU.
    monkeypatch.setattr(to_tensorrt, "_flags", lambda library: 0)
    plain = to_tensorrt.built

    def for_a_gpu(parsed, path, config, sizes, capabilities):
        config.num_compute_capabilities = 1
        config.set_compute_capability(parsed.library.ComputeCapability.SM89, 0)
        return plain(parsed, path, config, sizes, capabilities)

    monkeypatch.setattr(to_tensorrt, "built", for_a_gpu)
    (path, *_) = sorted((tiny_bundle / "graphs").glob("*.onnx"))
    engine = to_tensorrt.build_engine(path, sizes={"batch": (1, 2, 4)})
    assert engine.capabilities == ("SM89",) and len(engine.content) > 1000
    assert registered == [89] * len(tensorrt_plugins.plugins())


def test_tile_attention_stays_one_node_with_the_attributes_of_its_plugin():
    made = example("wan", frames=4)
    program = capture(made.module, made.inputs, loop=made.loop(2))
    program = run_passes(program, [TileAttention(references=1)], verify=False)
    graph = program.graphs["denoiser"]
    places = layout_weights(program.weights, used_weights(graph)).places
    nodes = [
        node
        for node in graph_to_onnx(graph, "denoiser", places, plugins=[OP]).model.graph.node
        if node.op_type == "tile_attention"
    ]
    traced = [n for n in graph.graph.nodes if n.target is torch.ops.optimize.tile_attention.default]
    assert len(nodes) == len(traced) > 0
    given = {item.name: onnx.helper.get_attribute_value(item) for item in nodes[0].attribute}
    assert given.pop("plugin_namespace") == b"optimize" and nodes[0].domain == "optimize"
    assert set(given) == {
        "frames", "tokens_per_frame", "references", "prefix", "suffix", "scale"
    }  # fmt: skip
    assert list(given["references"]) == list(traced[0].args[5]) and len(nodes[0].input) == 3
    # Elsewhere it is standard ops, as before.
    plain = graph_to_onnx(graph, "denoiser", places).model.graph
    assert all(node.op_type != "tile_attention" for node in plain.node)

"""The runner of TensorRT engines: the calls it makes, on a stand-in for the GPU.

No engine has run on a GPU here; that the calls exist in the real library is checked where it is.
"""

import gc
import sys

import numpy as np
import pytest

from optimize.runtime import machine
from optimize.runtime.errors import CorruptBundle, DeviceError, ResourceError
from optimize.runtime.manifest import EngineEntry, EngineGraph
from optimize.runtime.tensorrt_engine import TensorRtGraphs
from tests.runtime import fake_gpu

ENTRY = EngineEntry(
    device="cuda",
    precision="float32",
    built_with={"tensorrt_rtx": "1.7.1.116"},
    needs={"capabilities": "SM89"},
    graphs={
        "step": EngineGraph(
            file="engines/tensorrt-rtx/step.engine",
            inputs=("x",),
            outputs=("y", "rows"),
            tensors={"x": "x_in", "rows": "rows_out"},
        )
    },
)


@pytest.fixture
def gpu(monkeypatch):
    """The stand-ins, (cuda, tensorrt)."""
    cuda, library = fake_gpu.runtime(), fake_gpu.tensorrt()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", library)
    return cuda, library


def graphs(plan: bytes = b"plan", **options: bool) -> TensorRtGraphs:
    files = {"engines/tensorrt-rtx/step.engine": np.frombuffer(plan, np.uint8)}
    return TensorRtGraphs("tensorrt-rtx", ENTRY, files, **options)


def test_values_stay_on_the_device_and_buffers_are_used_again(gpu):
    engine = graphs().engine()
    x = engine.upload(np.arange(6).reshape(2, 3), "float32")
    first = engine.run("step", {"x": x}, {"y": None, "rows": None})
    np.testing.assert_array_equal(engine.download(first["y"]), 2.0 * np.arange(6).reshape(2, 3))
    assert engine.download(first["rows"]).tolist() == [2]
    second = engine.run("step", {"x": first["y"]}, {"y": None})
    np.testing.assert_array_equal(engine.download(second["y"]), 4.0 * np.arange(6).reshape(2, 3))
    # A buffer that fits is written into, one of another shape is not.
    third = engine.run("step", {"x": x}, {"y": second["y"]})
    assert third["y"] is second["y"]
    small = engine.upload(np.ones((1, 3)), "float32")
    assert engine.run("step", {"x": small}, {"y": third["y"]})["y"] is not third["y"]


def test_memory_is_given_back_with_the_handles(gpu):
    cuda, _ = gpu
    engine = graphs().engine()
    handle = engine.zeros((4, 3), "bfloat16")
    assert engine.download(handle).dtype == np.float32 and not engine.download(handle).any()
    engine.run("step", {"x": engine.upload(np.ones((4, 3)), "float32")}, {"y": None})
    del handle
    gc.collect()
    assert not cuda.blocks


def test_cuda_graphs_are_asked_of_the_library(gpu):
    _, library = gpu
    graphs()
    assert library.configs[-1].cuda_graph_strategy == "whole"
    graphs(cuda_graphs=False)
    assert library.configs[-1] is None


def test_what_goes_wrong_is_said(gpu, monkeypatch):
    cuda, library = gpu
    with pytest.raises(CorruptBundle, match=r"refused engines/tensorrt-rtx/step.engine; export"):
        graphs(b"other")
    engine = graphs().engine()
    with pytest.raises(DeviceError, match=r"found input 'x' of shape \[9, 3\], which the engine"):
        engine.run("step", {"x": engine.upload(np.ones((9, 3)), "float32")}, {"y": None})
    library.fails = True
    with pytest.raises(DeviceError, match="the engine failed while running"):
        engine.run("step", {"x": engine.upload(np.ones((1, 3)), "float32")}, {"y": None})
    cuda.limit = 8
    with pytest.raises(ResourceError, match="cudaErrorMemoryAllocation; use a smaller batch"):
        engine.upload(np.ones((1, 3)), "float32")


def test_missing_libraries_are_named_with_what_installs_them(monkeypatch):
    """E11"""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(DeviceError, match=r"pip install 'optimize\[rtx\]'"):
        graphs()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", fake_gpu.tensorrt())
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(DeviceError, match="pip install cuda-bindings"):
        graphs()


@pytest.mark.skipif(
    machine.version_of("tensorrt_rtx") is None,
    reason="tensorrt-rtx-cu13-bindings is not installed (extra rtx)",
)
def test_the_library_has_every_call_that_the_stand_in_has():
    import tensorrt_rtx_bindings as library

    stand_in = fake_gpu.Context, fake_gpu.Engine
    real = library.IExecutionContext, library.ICudaEngine
    for ours, theirs in zip(stand_in, real, strict=True):
        calls = [name for name in vars(ours) if not name.startswith("_")]
        assert calls and all(hasattr(theirs, name) for name in calls)
    assert hasattr(library.Runtime, "deserialize_cuda_engine")
    assert hasattr(library.IRuntimeConfig, "cuda_graph_strategy")
    assert hasattr(library.CudaGraphStrategy, "WHOLE_GRAPH_CAPTURE")
    assert {"FLOAT", "HALF", "BF16", "INT32", "INT64", "BOOL"} <= set(library.DataType.__members__)

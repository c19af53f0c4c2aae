"""Runs a bundle's TensorRT or TensorRT-RTX engines on an NVIDIA GPU, without PyTorch.

An engine is an executable: it is deserialised from verified bytes, and only where native code is
trusted. State stays on the device from call to call; one stream orders all work, and calls of one
graph take turns, as the GPU would run them one after another anyway.
"""

import threading
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.runtime import bfloat16
from optimize.runtime.errors import CorruptBundle, DeviceError, ResourceError
from optimize.runtime.machine import EXTRAS
from optimize.runtime.manifest import EngineEntry, EngineTarget
from optimize.runtime.request import numpy_dtype

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
"""Target → the module of its library."""

_TO_DEVICE, _TO_HOST = 1, 2
"""cudaMemcpyHostToDevice and cudaMemcpyDeviceToHost."""


class DeviceArray:
    """A handle: device memory, freed with it."""

    __slots__ = ("_cuda", "dtype", "pointer", "shape")

    def __init__(self, cuda: "Cuda", shape: tuple[int, ...], dtype: str) -> None:
        self._cuda = cuda
        self.shape = shape
        self.dtype = dtype
        self.pointer = cuda.allocate(max(1, self.nbytes))

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * stored_dtype(self.dtype).itemsize

    def __del__(self) -> None:
        if hasattr(self, "pointer"):
            self._cuda.free(self.pointer)


class Cuda:
    """The few calls of the CUDA runtime that the engine needs, on one stream.

    Raises:
        DeviceError: the package cuda-bindings, the driver or the GPU is missing.
    """

    def __init__(self) -> None:
        try:
            self._api = import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise DeviceError(
                "cuda.bindings: found no such package, which TensorRT engines need for memory on "
                "the GPU; pip install cuda-bindings"
            ) from error
        self.stream = self._checked(self._api.cudaStreamCreate())

    def allocate(self, size: int) -> int:
        """Device memory of `size` bytes."""
        return int(self._checked(self._api.cudaMallocAsync(size, self.stream)))

    def free(self, pointer: int) -> None:
        """Gives memory back once the work before it is done."""
        self._api.cudaFreeAsync(pointer, self.stream)

    def write(self, pointer: int, array: NDArray[Any]) -> None:
        """Copies an array to the device."""
        self._copy(pointer, array.ctypes.data, array.nbytes, _TO_DEVICE)

    def read(self, array: NDArray[Any], pointer: int) -> None:
        """Copies device memory into an array."""
        self._copy(array.ctypes.data, pointer, array.nbytes, _TO_HOST)

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        if size:
            direction = self._api.cudaMemcpyKind(kind)
            self._checked(self._api.cudaMemcpyAsync(target, source, size, direction, self.stream))
            self.wait()

    def wait(self) -> None:
        """Waits until the device has done all that was asked."""
        self._checked(self._api.cudaStreamSynchronize(self.stream))

    def _checked(self, result: tuple[Any, ...]) -> Any:
        code, *values = result
        if int(code) == 0:
            return values[0] if values else None
        name = getattr(code, "name", str(code))
        if "Memory" in name:
            raise ResourceError(f"GPU: {name}; use a smaller batch, or free memory")
        raise DeviceError(f"GPU: CUDA says {name}; check the driver and the GPU (nvidia-smi)")


class TensorRtGraphs:
    """The engines of a bundle, one execution context each.

    Args:
        target: "tensorrt" or "tensorrt-rtx".
        entry: what the manifest says about the engines.
        files: path in the bundle → verified bytes.
        cuda_graphs: let TensorRT-RTX record the launches of a call as a CUDA graph and replay it
            while shapes stay; TensorRT itself records nothing here.
    Raises:
        DeviceError: a library or the GPU is missing.
        CorruptBundle: an engine cannot be deserialised here.
    """

    def __init__(
        self,
        target: EngineTarget,
        entry: EngineEntry,
        files: Mapping[str, NDArray[np.uint8]],
        cuda_graphs: bool = True,
    ) -> None:
        module = MODULES[target]
        try:
            self.tensorrt = import_module(module)
        except ImportError as error:
            raise DeviceError(
                f"{module}: found no such package, which runs engines of {target}; "
                f"pip install 'optimize[{EXTRAS[target]}]'"
            ) from error
        self.cuda = Cuda()
        self.entry = entry
        self.providers: tuple[str, ...] = (f"{target} {self.tensorrt.__version__}",)
        self._logger = self.tensorrt.Logger(self.tensorrt.Logger.ERROR)
        self._runtime = self.tensorrt.Runtime(self._logger)
        self._cuda_graphs = cuda_graphs
        self.engines: dict[str, Any] = {}
        self.contexts: dict[str, Any] = {}
        self.locks: dict[str, threading.Lock] = {}
        for role, graph in entry.graphs.items():
            engine = self._runtime.deserialize_cuda_engine(files[graph.file].tobytes())
            if engine is None:
                raise CorruptBundle(
                    f"graph {role}: {target} {self.tensorrt.__version__} refused {graph.file}; "
                    "export again on this machine"
                )
            self.engines[role] = engine
            self.contexts[role] = self._context(engine)
            self.locks[role] = threading.Lock()

    def _context(self, engine: Any) -> Any:
        strategies = getattr(self.tensorrt, "CudaGraphStrategy", None)
        if not self._cuda_graphs or strategies is None:
            return engine.create_execution_context()
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(config)

    def engine(self) -> "TensorRtEngine":
        """An engine for one request."""
        return TensorRtEngine(self)


class TensorRtEngine:
    """The engine of one request; implements `optimize.runtime.driver.Engine`."""

    def __init__(self, graphs: TensorRtGraphs) -> None:
        self._graphs = graphs
        self._cuda = graphs.cuda

    def upload(self, array: NDArray[Any], dtype: str) -> DeviceArray:
        """A copy of the array on the device, as `dtype`."""
        if dtype == "bfloat16":
            copy: NDArray[Any] = bfloat16.to_bits(array)
        else:
            copy = np.array(array, dtype=numpy_dtype(dtype), order="C")
        handle = DeviceArray(self._cuda, copy.shape, dtype)
        self._cuda.write(handle.pointer, copy)
        return handle

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """Zeros on the device."""
        handle = DeviceArray(self._cuda, shape, dtype)
        self._cuda.write(handle.pointer, np.zeros(shape, stored_dtype(dtype)))
        return handle

    def download(self, handle: DeviceArray) -> NDArray[Any]:
        """A copy on the host; bfloat16 as float32."""
        array = np.empty(handle.shape, stored_dtype(handle.dtype))
        self._cuda.read(array, handle.pointer)
        return bfloat16.from_bits(array) if handle.dtype == "bfloat16" else array

    def run(
        self,
        graph: str,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray | None],
    ) -> dict[str, DeviceArray]:
        """Runs a graph; see `Engine.run`."""
        entry, context = self._graphs.entry.graphs[graph], self._graphs.contexts[graph]
        engine = self._graphs.engines[graph]
        with self._graphs.locks[graph]:
            for name in entry.inputs:
                tensor = entry.tensors.get(name, name)
                if not context.set_input_shape(tensor, inputs[name].shape):
                    raise DeviceError(
                        f"graph {graph}: found input {name!r} of shape "
                        f"{list(inputs[name].shape)}, which the engine was not built for; export "
                        "again with other sizes"
                    )
                context.set_tensor_address(tensor, inputs[name].pointer)
            results = {}
            # An engine computes all its outputs, also those that nobody asked for.
            for name in entry.outputs:
                tensor = entry.tensors.get(name, name)
                shape = tuple(context.get_tensor_shape(tensor))
                results[name] = self._buffer(outputs.get(name), shape, engine, tensor)
                context.set_tensor_address(tensor, results[name].pointer)
            if not context.execute_async_v3(int(self._cuda.stream)):
                raise DeviceError(f"graph {graph}: the engine failed while running on the GPU")
            self._cuda.wait()
        return {name: results[name] for name in outputs}

    def _buffer(
        self, offered: DeviceArray | None, shape: tuple[int, ...], engine: Any, tensor: str
    ) -> DeviceArray:
        named = _DTYPES[engine.get_tensor_dtype(tensor).name]
        if offered is not None and (offered.shape, offered.dtype) == (shape, named):
            return offered
        return DeviceArray(self._cuda, shape, named)


_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""TensorRT's names of dtypes → ours."""


def stored_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype of the stored numbers: bfloat16 is uint16 bit patterns."""
    return np.dtype(np.uint16) if dtype == "bfloat16" else np.dtype(numpy_dtype(dtype))

"""The CUDA runtime and TensorRT as far as our runner calls them, on the memory of the host.

The engine doubles its input `x` [batch, 3] into `y`, and counts the rows in `rows` [1]. The names
and arguments are those of cuda-bindings 13 and of TensorRT's Python API.
"""

import ctypes
import types
from enum import IntEnum
from typing import Any

import numpy as np


class Code(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2


def runtime() -> types.ModuleType:
    """`cuda.bindings.runtime`; `blocks` has the memory in use."""
    made = types.ModuleType("cuda.bindings.runtime")
    blocks: dict[int, Any] = {}

    def allocate(size: int, stream: int) -> tuple[Any, ...]:
        if size > made.limit:  # type: ignore[attr-defined]
            return Code.cudaErrorMemoryAllocation, None
        block = ctypes.create_string_buffer(size)
        blocks[ctypes.addressof(block)] = block
        return Code.cudaSuccess, ctypes.addressof(block)

    def free(pointer: int, stream: int) -> tuple[Any, ...]:
        del blocks[pointer]
        return (Code.cudaSuccess,)

    def copy(target: int, source: int, size: int, kind: Any, stream: int) -> tuple[Any, ...]:
        ctypes.memmove(target, source, size)
        return (Code.cudaSuccess,)

    names = {
        "blocks": blocks,
        "limit": 2**30,
        "cudaStreamCreate": lambda: (Code.cudaSuccess, 7),
        "cudaStreamSynchronize": lambda stream: (Code.cudaSuccess,),
        "cudaMallocAsync": allocate,
        "cudaFreeAsync": free,
        "cudaMemcpyAsync": copy,
        "cudaMemcpyKind": IntEnum("cudaMemcpyKind", {"HostToDevice": 1, "DeviceToHost": 2}),
    }
    for name, item in names.items():
        setattr(made, name, item)
    return made


class DataType:
    """TensorRT's enumeration, by instance, as `DataType(x).name` is used."""

    def __init__(self, other: Any) -> None:
        self.name = other if isinstance(other, str) else other.name


class Context:
    def __init__(self, library: types.ModuleType) -> None:
        self.library = library
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return shape[0] <= 8

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (1,) if name == "rows_out" else self.shapes["x_in"]

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        shape = self.shapes["x_in"]
        count = int(np.prod(shape))

        def view(name: str, kind: Any, size: int) -> np.ndarray:
            return np.ctypeslib.as_array((kind * size).from_address(self.addresses[name]))

        view("y", ctypes.c_float, count)[:] = 2 * view("x_in", ctypes.c_float, count)
        view("rows_out", ctypes.c_int64, 1)[:] = shape[0]
        return not self.library.fails  # type: ignore[no-any-return, attr-defined]


class Engine:
    def __init__(self, library: types.ModuleType) -> None:
        self.library = library

    def create_runtime_config(self) -> Any:
        return types.SimpleNamespace(cuda_graph_strategy=None)

    def create_execution_context(self, config: Any = None) -> Context:
        self.library.configs.append(config)  # type: ignore[attr-defined]
        return Context(self.library)

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType("INT64" if name == "rows_out" else "FLOAT")


def tensorrt() -> types.ModuleType:
    """`tensorrt_rtx_bindings`; a plan that is not b"plan" is refused."""
    made = types.ModuleType("tensorrt_rtx_bindings")

    class Logger:
        ERROR = 1

        def __init__(self, level: int) -> None:
            self.level = level

    class Runtime:
        def __init__(self, logger: Logger) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            return Engine(made) if plan == b"plan" else None

    names: dict[str, Any] = {
        "__version__": "1.7.1.116",
        "Logger": Logger,
        "Runtime": Runtime,
        "DataType": DataType,
        "CudaGraphStrategy": types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"),
        "configs": [],
        "fails": False,
    }
    for name, item in names.items():
        setattr(made, name, item)
    return made

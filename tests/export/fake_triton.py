"""`triton_python_backend_utils` as far as our model uses it, after the public documentation."""

import types
from collections.abc import Mapping
from typing import Any

import numpy as np


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError("Tensor takes a numpy array")
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError(Exception):
    def message(self) -> str:
        return str(self)


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self.tensors = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}
        self.error = error


class Sender:
    """Keeps what is sent; after the final flag nothing more may come."""

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.final = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.final
        if response is not None:
            self.responses.append(response)
        self.final = bool(flags)


class Request:
    def __init__(self, **arrays: Any) -> None:
        self.arrays = arrays
        self.sender = Sender()

    def get_response_sender(self) -> Sender:
        return self.sender


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return Tensor(name, request.arrays[name]) if name in request.arrays else None


class Logger:
    lines: list[str] = []

    @classmethod
    def log_info(cls, text: str) -> None:
        cls.lines.append(text)

    log_error = log_info


def module() -> types.ModuleType:
    """The module as the server's interpreter has it."""
    made = types.ModuleType("triton_python_backend_utils")
    names: Mapping[str, Any] = {
        "Tensor": Tensor,
        "TritonError": TritonError,
        "InferenceResponse": InferenceResponse,
        "Logger": Logger,
        "get_input_tensor_by_name": get_input_tensor_by_name,
        "TRITONSERVER_RESPONSE_COMPLETE_FINAL": 1,
    }
    for name, item in names.items():
        setattr(made, name, item)
    return made

"""What Triton's Python backend gives a model, as its documentation says it, for tests.

It keeps the rules that a model could break: numpy in and out, strings as bytes objects, tensors of
a request gone when `execute` returns, one response to a request unless decoupled, nothing after the
final flag, outputs of the names and types that the configuration declares.
"""

import importlib.util
import json
import sys
import threading
import types
from enum import IntEnum
from pathlib import Path

import numpy as np
from google.protobuf import json_format, text_format

NUMPY = {
    "TYPE_BOOL": np.bool_,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}
FINAL = 1


class Code(IntEnum):
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS = range(7)
    CANCELLED = 7


class TritonError:
    def __init__(self, message, code=Code.INTERNAL):
        assert isinstance(message, str)
        self._message, self._code = message, code

    def message(self):
        return self._message

    def code(self):
        return self._code


for _code in Code:
    setattr(TritonError, _code.name, _code)


class Tensor:
    def __init__(self, name, array):
        assert isinstance(name, str) and type(array) is np.ndarray and array.flags.c_contiguous
        if array.dtype == np.object_:
            assert all(isinstance(item, bytes) for item in array.ravel())
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self):
        return self._tensors

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error


class Sender:
    def __init__(self, config):
        self.responses, self.done = [], threading.Event()
        self.cancelled = False
        self._config = config
        self._outputs = {item["name"]: item for item in config["output"]}

    def send(self, response=None, flags=0):
        decoupled = self._config.get("model_transaction_policy", {}).get("decoupled", False)
        if self.done.is_set():
            raise RuntimeError("Unable to send response. Response sender has been closed.")
        if not decoupled and response is not None and self.responses:
            raise RuntimeError("Non-decoupled model cannot send more than one response.")
        if not decoupled and response is None and not self.responses:
            raise RuntimeError("Non-decoupled model cannot send complete final before a response.")
        if response is not None:
            for tensor in response.output_tensors():
                self._check(tensor)
            self.responses.append(response)
        if flags == FINAL:
            self.done.set()

    def is_cancelled(self):
        return self.cancelled

    def _check(self, tensor):
        declared = self._outputs[tensor.name()]
        array, dims = tensor.as_numpy(), [int(size) for size in declared["dims"]]
        assert array.dtype == NUMPY[declared["data_type"]], (tensor.name(), array.dtype)
        assert array.ndim == len(dims), (tensor.name(), array.shape, dims)
        assert all(want in (-1, got) for want, got in zip(dims, array.shape, strict=True))


class InferenceRequest:
    def __init__(self, config, inputs):
        declared = {item["name"]: item for item in config["input"]}
        for name, array in inputs.items():
            dims = [int(size) for size in declared[name]["dims"]]
            assert array.dtype == NUMPY[declared[name]["data_type"]], name
            assert array.ndim == len(dims), (name, array.shape, dims)
        lacking = [
            n for n, item in declared.items() if not item.get("optional") and n not in inputs
        ]
        assert not lacking, f"the server refuses a request without {lacking}"
        self._inputs = [Tensor(name, array.copy()) for name, array in inputs.items()]
        self._sender = Sender(config)

    def inputs(self):
        return self._inputs

    def get_response_sender(self):
        return self._sender

    def forget(self):
        """As the server does after `execute`."""
        for tensor in self._inputs:
            if tensor._array.dtype != np.object_:
                tensor._array.fill(0)


class Server:
    """A model of a repository, loaded as the server loads it."""

    def __init__(self, repository: Path, name: str, config_class):
        text = (repository / name / "config.pbtxt").read_text()
        self.message = text_format.Parse(text, config_class())
        # As the server passes it: numbers of 64 bits are strings there, so are dims.
        self.config = json_format.MessageToDict(self.message, preserving_proto_field_name=True)
        file = repository / name / "1" / "model.py"
        spec = importlib.util.spec_from_file_location(f"triton_model_{id(self)}", file)
        module = importlib.util.module_from_spec(spec)
        self.logged = []
        with _installed(self.logged):
            spec.loader.exec_module(module)
        self.module = module
        self.model = module.TritonPythonModel()
        self._repository, self._name = repository, name
        self.initialize("CPU", self.config["parameters"])

    def initialize(self, kind, parameters):
        """As the server does for an instance of that kind."""
        self.model.initialize(
            {
                "model_config": json.dumps(self.config | {"parameters": parameters}),
                "model_instance_kind": kind,
                "model_instance_device_id": "0",
                "model_repository": str(self._repository / self._name),
                "model_version": "1",
                "model_name": self._name,
            }
        )

    def send(self, *requests):
        """Sends requests in one call of `execute`; returns their senders at once."""
        made = [InferenceRequest(self.config, request) for request in requests]
        assert self.model.execute(made) is None
        for request in made:
            request.forget()
        return [request.get_response_sender() for request in made]

    def ask(self, **inputs):
        """The responses to one request, when all are there."""
        (sender,) = self.send(inputs)
        assert sender.done.wait(60), "found no final flag after a minute"
        return sender.responses

    def answer(self, **inputs):
        """The tensors of the only response to one request."""
        (response,) = self.ask(**inputs)
        assert not response.has_error(), response.error().message()
        return tensors(response)

    def close(self):
        self.model.finalize()


def tensors(response):
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


class _installed:
    """`triton_python_backend_utils` while a model is imported."""

    def __init__(self, logged):
        self._module = types.ModuleType("triton_python_backend_utils")
        self._module.__dict__.update(
            Tensor=Tensor,
            InferenceResponse=InferenceResponse,
            TritonError=TritonError,
            TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
            using_decoupled_model_transaction_policy=lambda config: (
                config["model_transaction_policy"]["decoupled"]
                if "model_transaction_policy" in config
                else False
            ),
            Logger=types.SimpleNamespace(log_error=logged.append, log_info=lambda text: None),
        )

    def __enter__(self):
        sys.modules[self._module.__name__] = self._module

    def __exit__(self, *_):
        del sys.modules[self._module.__name__]

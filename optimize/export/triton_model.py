"""Answers requests of NVIDIA Triton Inference Server with the bundle beside this file.

This is `model.py` of the repositories that `optimize.export.triton_server` writes: it runs inside
the server, whose Python must have `optimize` installed, and imports no PyTorch. One session answers
all requests of an instance, `concurrency` of them at once; a request beyond that waits in Triton's
own queue, where its policies hold. A decoupled model streams what the loop makes while it runs.
"""

import json
import os
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from optimize.runtime.errors import OptimizeError, ResourceError, RuntimeInputError
from optimize.runtime.loop import appended_results
from optimize.runtime.session import load

GPU_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class Cancelled(Exception):
    """The client no longer waits for the answer."""


class TritonPythonModel:
    """One instance of the model; the name and the methods are Triton's."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads the bundle, on the CPU or on the GPU of this instance.

        The parameters `target` and `trust` of config.pbtxt are those of `optimize.runtime.load`,
        and `public_key` is the path of the file that it takes the content of.
        """
        config = json.loads(args["model_config"])
        parameters = {
            name: value["string_value"] for name, value in config.get("parameters", {}).items()
        }
        threads, target = parameters.get("threads"), parameters.get("target")
        on_gpu = args["model_instance_kind"] == "GPU"
        if on_gpu:
            _see_only(int(args["model_instance_device_id"]))
        options: dict[str, Any] = {"target": target, "trust": parameters.get("trust")}
        if on_gpu and target in (None, "onnx") and options["trust"] is None:
            options["providers"] = GPU_PROVIDERS
        if key := parameters.get("public_key"):
            options["public_key"] = Path(key).read_bytes()
        self._session = load(
            Path(__file__).parent / "bundle",
            threads=None if threads is None else int(threads),
            **options,
        )
        pb_utils.Logger.log_info(f"optimize: {self._session!r}: {self._session.reason}")
        self._streams = pb_utils.using_decoupled_model_transaction_policy(config)
        self._scalars = {item.name for item in self._session.signature.inputs if not item.shape}
        concurrency = int(parameters.get("concurrency", "1"))
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="request")
        self._free = threading.Semaphore(concurrency)

    def execute(self, requests: list[Any]) -> None:
        """Starts the requests; each is answered by its response sender when it is done.

        Waits while as many requests run as may, so that the server keeps the others queued.
        """
        for request in requests:
            sender = request.get_response_sender()
            # Triton frees the tensors of a request when this method returns.
            try:
                fields = self._fields(request)
            except Exception as error:
                _send_error(sender, error)
                continue
            self._free.acquire()
            self._pool.submit(self._run, sender, fields)

    def finalize(self) -> None:
        """Waits for the requests that run, then frees the bundle."""
        self._pool.shutdown(wait=True)
        self._session.close()

    def _run(self, sender: Any, fields: dict[str, Any]) -> None:
        try:
            self._answer(sender, fields)
        except Exception as error:
            _send_error(sender, error)
        finally:
            self._free.release()

    def _answer(self, sender: Any, fields: dict[str, Any]) -> None:
        def go_on(done: int, total: int) -> None:
            if sender.is_cancelled():
                raise Cancelled

        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if not self._streams:
            results = self._session(progress=go_on, **fields)
            sender.send(_response(results), flags=final)
            return
        name = self._streamed(fields)
        for part in self._session.stream(progress=go_on, **fields):
            sender.send(_response({name: part}))
        sender.send(flags=final)

    def _streamed(self, fields: Mapping[str, Any]) -> str:
        """What the parts of this request's stream are called."""
        if "prompt" in fields and self._session.manifest.prompting is not None:
            return "text"
        return appended_results(self._session.manifest.loop)[0]

    def _fields(self, request: Any) -> dict[str, Any]:
        """The request as a session takes it, in memory of its own."""
        fields = {}
        for tensor in request.inputs():
            name, array = tensor.name(), np.array(tensor.as_numpy())
            fields[name] = self._field(name, array)
        return fields

    def _field(self, name: str, array: NDArray[Any]) -> Any:
        signature, prompting = self._session.signature, self._session.manifest.prompting
        if name in self._scalars and array.size == 1:
            return array.reshape(())
        if name in {item.name for item in signature.inputs}:
            return array
        if prompting is not None and name == "prompt":
            prompts = [_decoded(item) for item in array.ravel()]
            return prompts[0] if len(prompts) == 1 else prompts
        if prompting is not None and name == "image":
            # One picture serves all prompts; of several, each prompt has its own.
            return array[0] if len(array) == 1 else list(array)
        if name == "seed" or name in signature.dimensions:
            if array.size != 1:
                raise RuntimeInputError(f"{name}: found {array.size} numbers, expected one")
            return int(array.item())
        return array


def _see_only(device: int) -> None:
    """Shows this process one GPU of those the server sees; its number is 0 from then on."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = None if visible is None else visible.split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = str(device) if devices is None else devices[device].strip()


def _decoded(text: Any) -> str:
    try:
        return text.decode() if isinstance(text, bytes) else str(text)
    except UnicodeDecodeError as error:
        raise RuntimeInputError(
            f"prompt: found bytes that are not UTF-8 at {error.start}, expected text"
        ) from error


def _response(results: Mapping[str, Any]) -> Any:
    return pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor(name, _array(value)) for name, value in results.items()]
    )


def _array(value: Any) -> NDArray[Any]:
    """A result as a tensor; texts as bytes objects."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        return np.array([text.encode() for text in value], dtype=np.object_)
    return np.ascontiguousarray(value)


def _send_error(sender: Any, error: Exception) -> None:
    """Ends a request with an error; the server goes on."""
    final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
    try:
        sender.send(pb_utils.InferenceResponse(error=_triton_error(error)), flags=final)
    except Exception as refused:
        pb_utils.Logger.log_error(f"found no way to report {error!r}: {refused}")


def _triton_error(error: Exception) -> Any:
    """The error as the client sees it: our message, and the code that is nearest to its kind."""
    codes = pb_utils.TritonError
    if isinstance(error, Cancelled):
        return codes("request: cancelled by the client", codes.CANCELLED)
    if isinstance(error, RuntimeInputError):
        return codes(str(error), codes.INVALID_ARG)
    if isinstance(error, ResourceError):
        return codes(str(error), codes.UNAVAILABLE)
    if isinstance(error, OptimizeError):
        return codes(str(error), codes.INTERNAL)
    pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
    return codes(f"found an error inside the model: {type(error).__name__}: {error}")

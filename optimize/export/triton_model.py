"""The model.py of a Triton Inference Server model: answers requests with a bundle beside it.

The server imports this file by itself, so it needs `optimize` with its runtime and nothing of the
compiler. The folder of the model's version holds the bundle; config.pbtxt holds the rest.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from optimize.runtime import load
from optimize.runtime.errors import OptimizeError

BUNDLE = "bundle"
TEXT = "text"
SCALARS = "scalars"
"""The parameter that names the inputs that are single numbers: Triton gives them as [1]."""


class TritonPythonModel:
    """One instance; Triton may run several, and calls each from one thread at a time."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads the bundle."""
        config = json.loads(args["model_config"])
        settings: dict[str, Any] = {
            name: item["string_value"] for name, item in config.get("parameters", {}).items()
        }
        folder = os.path.join(args["model_repository"], args["model_version"], BUNDLE)
        providers = [name for name in settings.get("providers", "").split(",") if name]
        native: Any = "native" if settings.get("trust") == "native" else None
        self.session = load(
            folder,
            target=settings.get("target") or None,
            providers=providers or None,
            threads=int(settings["threads"]) if settings.get("threads") else None,
            trust=native,
        )
        self.scalars = set(settings.get(SCALARS, "").split(","))
        self.inputs = [item["name"] for item in config["input"]]
        self.outputs = [item["name"] for item in config["output"]]
        policy = config.get("model_transaction_policy", {})
        self.streams = bool(policy.get("decoupled", False))
        pb_utils.Logger.log_info(f"optimize: {self.session!r}, {self.session.reason}")

    def execute(self, requests: Iterable[Any]) -> list[Any] | None:
        """Answers requests one by one; one that fails does not touch the others."""
        if not self.streams:
            return [self._answer(request) for request in requests]
        for request in requests:
            self._stream(request, request.get_response_sender())
        return None

    def finalize(self) -> None:
        """Frees the bundle."""
        self.session.close()

    def _answer(self, request: Any) -> Any:
        try:
            results = self.session(**self._fields(request))
            tensors = [
                pb_utils.Tensor(name, _array(results[name]))
                for name in self.outputs
                if name in results
            ]
        except Exception as error:
            return _failure(error)
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _stream(self, request: Any, sender: Any) -> None:
        """Sends what the request makes while it is made, then the end."""
        try:
            fields = self._fields(request)
            name = TEXT if "prompt" in fields else self.outputs[0]
            for part in self.session.stream(**fields):
                tensor = pb_utils.Tensor(name, _array(part))
                sender.send(pb_utils.InferenceResponse(output_tensors=[tensor]))
        except Exception as error:
            sender.send(_failure(error))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _fields(self, request: Any) -> dict[str, Any]:
        """The request as a session takes it; what was not sent is left out."""
        fields: dict[str, Any] = {}
        for name in self.inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                continue
            array = tensor.as_numpy()
            if array.dtype.kind in "OSU":
                texts = [_decoded(item) for item in array.reshape(-1)]
                fields[name] = texts if len(texts) > 1 else texts[0]
            elif name in self.scalars:
                fields[name] = array.reshape(-1)[0].item()
            else:
                fields[name] = array
        return fields


def _decoded(item: Any) -> str:
    return item.decode("utf-8") if isinstance(item, bytes) else str(item)


def _array(result: Any) -> Any:
    """A result as an array; text as bytes, which is how Triton has strings."""
    if isinstance(result, (str, list)):
        texts = [result] if isinstance(result, str) else result
        return np.array([text.encode("utf-8") for text in texts], dtype=np.object_)
    return np.ascontiguousarray(result)


def _failure(error: Exception) -> Any:
    """An error of ours as it reads; anything else is named, without a trace for strangers."""
    known = isinstance(error, OptimizeError)
    text = f"{error.code}: {error}" if known else f"internal: {type(error).__name__}"  # type: ignore[attr-defined]
    if not known:
        pb_utils.Logger.log_error(f"optimize: {type(error).__name__}: {error}")
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(text))

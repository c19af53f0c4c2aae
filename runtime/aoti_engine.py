"""Runs a bundle's AOTInductor packages. The one file of the runtime that imports PyTorch.

A package is compiled code: loading it is running it, so it is loaded from verified bytes and only
where native code is trusted. PyTorch's Python loader may unpickle parts of an archive; the C++ one
used here does not. The weights are those of the bundle: the code reads them where they lie.
"""

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from optimize.runtime.errors import CorruptBundle, OptimizeError, ResourceError
from optimize.runtime.manifest import EngineEntry
from optimize.runtime.tensors import StoredTensor

MODEL = "model"
"""The name of the one model in a package, which PyTorch's loaders look for by default."""

MAX_RUNNERS = 8

DTYPES: Mapping[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}


class AotiGraphs:
    """The loaded packages of a bundle and the weights they share.

    Args:
        entry: what the manifest says about the packages.
        files: path in the bundle → verified bytes.
        stored: the tensors of the weights file, verified; their memory is used as it is.
        threads: of one operator; PyTorch has one setting for the whole process, which this changes.
    Raises:
        CorruptBundle: PyTorch cannot load a package.
    """

    def __init__(
        self,
        entry: EngineEntry,
        files: Mapping[str, NDArray[np.uint8]],
        stored: Mapping[str, StoredTensor],
        threads: int | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = torch.device(entry.device)
        self.entry = entry
        self.providers: tuple[str, ...] = (f"torch {torch.__version__} ({entry.device})",)
        with warnings.catch_warnings():
            # PyTorch has no way to say that a tensor is read only; no package writes its weights.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._weights = {
                name: _tensor(tensor).to(self.device) for name, tensor in stored.items()
            }
        self._loaders = {
            role: self._load(role, files[graph.file], graph.weights)
            for role, graph in entry.graphs.items()
        }

    def _load(self, role: str, content: NDArray[np.uint8], weights: Mapping[str, str]) -> Any:
        missing = sorted(set(weights.values()) - set(self._weights))
        if missing:
            raise CorruptBundle(
                f"graph {role}: found no weight {missing[0]!r} in the bundle, expected one; "
                "export the bundle again"
            )
        # The loader wants a path, and copies what it finds there to a folder of its own anyway.
        with tempfile.NamedTemporaryFile(suffix=".pt2") as file:
            file.write(content.data)
            file.flush()
            return self._opened(role, file.name, weights)

    def _opened(self, role: str, path: str, weights: Mapping[str, str]) -> Any:
        try:
            runners = min(MAX_RUNNERS, os.cpu_count() or 1)
            index = 0 if self.device.type == "cuda" else -1
            loader = torch._C._aoti.AOTIModelPackageLoader(path, MODEL, False, runners, index)
            constants = {name: self._weights[stored] for name, stored in weights.items()}
            loader.load_constants(constants, False, True, True, False)
        except RuntimeError as error:
            raise CorruptBundle(
                f"graph {role}: PyTorch {torch.__version__} refused the package: "
                f"{_first_line(error)}; export the bundle again"
            ) from error
        return loader

    def engine(self) -> "AotiEngine":
        """An engine for one request."""
        return AotiEngine(self)

    def call(self, graph: str, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Runs one graph; several threads may at once."""
        results: list[torch.Tensor] = self._loaders[graph].boxed_run(list(inputs))
        return results


class AotiEngine:
    """The engine of one request; implements `optimize.runtime.driver.Engine` over tensors."""

    def __init__(self, graphs: AotiGraphs) -> None:
        self._graphs = graphs

    def upload(self, array: NDArray[Any], dtype: str) -> torch.Tensor:
        """A copy of the array on the device, as `dtype`."""
        copied = np.array(array, order="C")
        return torch.from_numpy(copied).to(self._graphs.device, DTYPES[dtype])

    def zeros(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        """Zeros on the device."""
        return torch.zeros(shape, dtype=DTYPES[dtype], device=self._graphs.device)

    def download(self, handle: torch.Tensor) -> NDArray[Any]:
        """A copy on the host; bfloat16 as float32."""
        handle = handle.float() if handle.dtype == torch.bfloat16 else handle
        array: NDArray[Any] = handle.to("cpu", copy=True).numpy()
        return array

    def run(
        self,
        graph: str,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor | None],
    ) -> dict[str, torch.Tensor]:
        """Runs a graph; see `Engine.run`. The buffers offered are not used."""
        entry = self._graphs.entry.graphs[graph]
        given = [inputs[name] for name in entry.inputs]
        try:
            with torch.no_grad():
                results = self._graphs.call(graph, given)
        except RuntimeError as error:
            raise _failed(graph, error) from error
        pointers = {tensor.data_ptr() for tensor in given}
        named = dict(zip(entry.outputs, results, strict=True))
        return {name: _handle(named[name], pointers) for name in outputs}


def _handle(result: torch.Tensor, given: set[int]) -> torch.Tensor:
    """A result as the next call takes it.

    Compiled code trusts that its inputs are contiguous and does not look; nor may a handle share
    the memory of an input.
    """
    result = result.contiguous()
    return result.clone() if result.data_ptr() in given else result


def _tensor(stored: StoredTensor) -> torch.Tensor:
    """A tensor over the memory of a weight."""
    array = stored.array
    if stored.dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _failed(graph: str, error: RuntimeError) -> OptimizeError:
    text = f"graph {graph}: failed while running: {_first_line(error)}"
    if "alloc" in text.lower() or "out of memory" in text.lower():
        return ResourceError(f"{text}; use a smaller batch, or free memory")
    return CorruptBundle(f"{text}; export the bundle again")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]

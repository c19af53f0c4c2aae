"""Runs a bundle's graphs in ONNX Runtime; values stay in its own buffers from call to call.

One `OnnxGraphs` is made per loaded bundle: the sessions, and one copy of the weights that all of
them read. Large matrices are not initializers but inputs bound to that copy, because ONNX Runtime
would copy an initializer into every session. One `OnnxEngine` is made per request: the bindings of
its buffers. So requests never share state, and several threads may run requests at once.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from optimize.runtime import bfloat16, onnx_wire
from optimize.runtime.errors import CorruptBundle, DeviceError, OptimizeError, ResourceError
from optimize.runtime.manifest import WEIGHTS_NAME, GraphEntry
from optimize.runtime.onnx_preflight import ONNX_TYPES, check_graph
from optimize.runtime.request import numpy_dtype
from optimize.runtime.tensors import StoredTensor

CPU = "CPUExecutionProvider"
FOLDING_LIMIT = "optimization.constant_folding_max_output_size_in_bytes"
_VERSION = tuple(int(part) for part in ort.__version__.split(".")[:2])

MAX_BINDINGS = 32
"""Bindings kept per graph; a loop alternates between two or three."""

PREPACK_BYTES = 256 * 2**20
"""So many bytes of repacked weights, over all graphs of a bundle, are a small price for speed."""

_DTYPES = {number: name for name, number in ONNX_TYPES.items()}
_log = logging.getLogger("optimize.runtime")


class Array:
    """A handle: an OrtValue, and the numpy memory under it when it lies on the CPU."""

    __slots__ = ("memory", "value")

    def __init__(self, value: Any, memory: NDArray[Any] | None = None) -> None:
        self.value = value
        self.memory = memory


class OnnxGraphs:
    """The sessions of a bundle and the weights they share.

    Args:
        models: graph name → ONNX protobuf, verified.
        entries: graph name → what its inputs and outputs are called in the protobuf.
        stored: the tensors of the weights file, verified; their memory is used as it is.
        providers: execution providers in order of preference; every one must be usable.
        threads: threads of one operator; None leaves the choice to ONNX Runtime.
        prepack: give weights to ONNX Runtime, which repacks matrices for speed in a second copy: up
            to 2 times faster at 1 to 8 rows, up to 1.5 times where rows are many and long. None
            does so for the graphs whose entries say that they have few rows, and for all where
            the copies take `PREPACK_BYTES` at most.
    Raises:
        DeviceError: a provider is unknown or unusable here.
        CorruptBundle: ONNX Runtime cannot read a graph.
        UnsafeBundle: a graph holds what is not allowed.
    """

    def __init__(
        self,
        models: Mapping[str, bytes],
        entries: Mapping[str, GraphEntry],
        stored: Mapping[str, StoredTensor],
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        prepack: bool | None = None,
    ) -> None:
        self.providers = usable_providers(providers)
        self.device = "cuda" if self.providers[0] != CPU else "cpu"
        self.threads = threads
        self.sessions: dict[str, Any] = {}
        self.shared: dict[str, tuple[str, ...]] = {}
        self.entries = entries
        self._stored = stored
        self._weights: dict[str, Array] = {}
        checked = {
            name: check_graph(memoryview(model), name, stored, WEIGHTS_NAME)
            for name, model in models.items()
        }
        copied = sum(stored[t.name].array.nbytes for it in checked.values() for t in it.shared)
        for name, model in models.items():
            view, weights = memoryview(model), checked[name]
            small = entries[name].few_rows or copied <= PREPACK_BYTES
            packed = small if prepack is None else prepack
            shared = () if packed else weights.shared
            kept = (*weights.kept, *(t.name for t in weights.shared)) if packed else weights.kept
            self.shared[name] = tuple(tensor.name for tensor in shared)
            rewritten = onnx_wire.replace_initializers(view, shared) if shared else model
            session = self._session(name, rewritten, kept, packed, weights.folding_bytes)
            _check_names(name, session, entries[name], self.shared[name])
            self.sessions[name] = session

    def engine(self) -> "OnnxEngine":
        """An engine for one request."""
        return OnnxEngine(self)

    def weight(self, name: str) -> Array:
        """The one handle of a shared weight, on the device the graphs run on."""
        if name not in self._weights:
            tensor = self._stored[name]
            self._weights[name] = make_array(tensor.array, tensor.dtype, self.device)
        return self._weights[name]

    def _session(
        self, name: str, model: bytes, kept: Sequence[str], prepack: bool, folding_bytes: int
    ) -> Any:
        options = ort.SessionOptions()
        options.add_session_config_entry(FOLDING_LIMIT, str(folding_bytes))
        # Before 1.28 there is no such limit, and 100 bytes of graph could ask for gigabytes.
        disabled = None if _VERSION >= (1, 28) else ["ConstantFolding"]
        options.log_severity_level = 3
        # Threads that wait by spinning would take the cores from the other sessions of a process:
        # with four in turns each ran up to three times slower.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
            options.inter_op_num_threads = 1
        if not prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if CPU not in self.providers:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        given = [
            make_array(self._stored[item].array, self._stored[item].dtype, "cpu") for item in kept
        ]
        if given:
            options.add_external_initializers(list(kept), [array.value for array in given])
        # ONNX Runtime raises many types, UnicodeDecodeError among them, for bytes it cannot read.
        try:
            session = ort.InferenceSession(
                model,
                options,
                providers=list(self.providers),
                disabled_optimizers=disabled,
                enable_fallback=False,
            )
        except MemoryError as error:
            raise ResourceError(f"graph {name}: out of memory while loading") from error
        except Exception as error:
            raise CorruptBundle(
                f"graph {name}: ONNX Runtime {ort.__version__} refused it: {_first_line(error)}"
            ) from error
        found = session.get_providers()
        missing = [provider for provider in self.providers if provider not in found]
        if missing:
            raise DeviceError(
                f"graph {name}: found providers {', '.join(found)} after loading, expected "
                f"{', '.join(missing)}, too; its libraries may be missing on this machine"
            )
        return session


def _check_names(graph: str, session: Any, entry: GraphEntry, shared: Sequence[str]) -> None:
    """Refuses a graph that takes or gives other values than the manifest says."""
    try:
        taken = [item.name for item in session.get_inputs()]
        given = [item.name for item in session.get_outputs()]
    except UnicodeDecodeError as error:
        raise CorruptBundle(f"graph {graph}: found a name that is not UTF-8") from error
    inputs, outputs = [*entry.inputs.values(), *shared], [*entry.outputs.values()]
    for what, expected, found in (
        ("inputs", inputs, taken),
        ("outputs", outputs, [name for name in given if name in outputs]),
    ):
        if sorted(set(expected)) != sorted(found) or len(expected) != len(found):
            raise CorruptBundle(
                f"graph {graph}: found {what} {_shown(found)}, expected {_shown(expected)} as the "
                "manifest says; export the bundle again"
            )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:10])[:500] or "none"


def usable_providers(providers: Sequence[str] | None) -> tuple[str, ...]:
    """The execution providers to use; never others than asked for.

    Raises:
        DeviceError: one is not in this build of ONNX Runtime; lists those that are.
    """
    if providers is None:
        return (CPU,)
    available = ort.get_available_providers()
    if isinstance(providers, str) or not providers:
        raise DeviceError(f"providers: found {providers!r}, expected a list of {available}")
    for provider in providers:
        if provider not in available:
            raise DeviceError(
                f"providers: found {provider!r}, expected some of {', '.join(available)}; install "
                "the onnxruntime package that has it, or leave it out"
            )
    return tuple(providers)


class OnnxEngine:
    """The engine of one request; implements `optimize.runtime.driver.Engine`."""

    def __init__(self, graphs: OnnxGraphs) -> None:
        self._graphs = graphs
        self._bindings: dict[str, dict[Any, _Binding]] = {name: {} for name in graphs.sessions}

    def upload(self, array: NDArray[Any], dtype: str) -> Array:
        """A copy of the array on the device, as `dtype`."""
        if dtype == "bfloat16":
            copy: NDArray[Any] = bfloat16.to_bits(array)
        else:
            copy = np.array(array, dtype=numpy_dtype(dtype), order="C")
        return make_array(copy, dtype, self._graphs.device)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Zeros on the device."""
        stored = np.uint16 if dtype == "bfloat16" else numpy_dtype(dtype)
        return make_array(np.zeros(shape, stored), dtype, self._graphs.device)

    def download(self, handle: Array) -> NDArray[Any]:
        """A copy on the host; bfloat16 as float32."""
        if handle.memory is not None:
            bits = handle.value.element_type() == ONNX_TYPES["bfloat16"]
            return bfloat16.from_bits(handle.memory) if bits else handle.memory.copy()
        # On the CPU this is a view of ONNX Runtime's buffer, which the next call may write.
        array: NDArray[Any] = handle.value.numpy()
        return array if array.flags.owndata else array.copy()

    def run(
        self, graph: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array | None]
    ) -> dict[str, Array]:
        """Runs a graph; see `Engine.run`."""
        kept = self._bindings[graph]
        key = (tuple(outputs), *map(id, outputs.values()))
        binding = kept.get(key)
        if binding is None:
            if len(kept) >= MAX_BINDINGS:
                kept.pop(next(iter(kept)))
            binding = kept[key] = _Binding(self._graphs, graph, outputs)
        return binding.run(inputs)


class _Binding:
    """A graph with its output buffers bound; inputs are rebound only when they change."""

    def __init__(self, graphs: OnnxGraphs, graph: str, outputs: Mapping[str, Array | None]) -> None:
        self._session = graphs.sessions[graph]._sess
        self._io = graphs.sessions[graph].io_binding()._iobinding
        self._device = ort.OrtDevice.make(graphs.device, 0)._get_c_device()
        self._graph = graph
        self._names = graphs.entries[graph].inputs
        self._output_names = graphs.entries[graph].outputs
        self._inputs: dict[str, Array] = {}
        self._outputs = {name: array for name, array in outputs.items() if array is not None}
        self._unbound = [name for name, array in outputs.items() if array is None]
        self._weights = [graphs.weight(name) for name in graphs.shared[graph]]
        for name, array in zip(graphs.shared[graph], self._weights, strict=True):
            self._io.bind_ortvalue_input(name, array.value._ortvalue)
        for name, array in self._outputs.items():
            self._io.bind_ortvalue_output(self._output_names[name], array.value._ortvalue)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        bound = self._inputs
        for name, array in inputs.items():
            if bound.get(name) is not array:
                self._io.bind_ortvalue_input(self._names[name], array.value._ortvalue)
                bound[name] = array
        # Bound anew each time: ONNX Runtime would write into the buffer it returned last time.
        for name in self._unbound:
            self._io.bind_output(self._output_names[name], self._device)
        # ONNX Runtime raises many types; all say in their first line what went wrong.
        try:
            self._session.run_with_iobinding(self._io, None)
        except Exception as error:
            raise _failed(self._graph, error) from error
        if not self._unbound:
            return self._outputs
        made = self._io.get_outputs()
        first = len(self._outputs)
        return self._outputs | {
            name: _adopt(made[first + position]) for position, name in enumerate(self._unbound)
        }


def make_array(memory: NDArray[Any], dtype: str, device: str) -> Array:
    """A handle over numpy memory; on the CPU it shares that memory."""
    memory = np.require(memory, requirements=["C", "W"]) if memory.ndim == 0 else memory
    if device != "cpu":
        return Array(ort.OrtValue.ortvalue_from_numpy(memory, device, 0))
    if dtype == "bfloat16":
        value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(memory, ONNX_TYPES[dtype])
    else:
        value = ort.OrtValue.ortvalue_from_numpy(memory)
    return Array(value, memory)


def _adopt(value: Any) -> Array:
    return Array(ort.OrtValue(value))


def _failed(graph: str, error: Exception) -> OptimizeError:
    text = f"graph {graph}: failed while running: {_first_line(error)}"
    if "alloc" in text.lower():
        return ResourceError(f"{text}; use a smaller batch, or free memory")
    return CorruptBundle(f"{text}; export the bundle again")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]

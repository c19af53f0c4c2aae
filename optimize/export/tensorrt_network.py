"""ONNX graph → network of TensorRT or TensorRT-RTX: what the two builders have in common.

Both are given as a module, `tensorrt` or `tensorrt_rtx_bindings`; their Python APIs agree in all
that is used here. The parser finds the weights where the graph says they lie.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from optimize.ir.errors import InputModelError, UnsupportedOpError
from optimize.runtime.errors import ResourceError

Sizes = tuple[int, int, int]
"""The least size of a dimension, the size to be fastest at, the greatest size."""


@dataclass(frozen=True)
class Layer:
    """One layer of the network, as parsed and not yet fused with its neighbours.

    Attributes:
        name: begins with the name of the ONNX node it is part of.
        kind: TensorRT's type, such as "ATTENTION_INPUT" or "CONSTANT".
        shape: of its first output; -1 where a request decides the size.
        dtype: of its first output, TensorRT's name, such as "HALF".
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Engine:
    """A built engine.

    Attributes:
        content: the serialized engine, for `Runtime.deserialize_cuda_engine`.
        layers: the layers it was built from, in the order the parser made them.
        capabilities: the compute capabilities it runs on.
        sizes: name of a dimension → the sizes it was built for.
    """

    content: bytes
    layers: tuple[Layer, ...]
    capabilities: tuple[str, ...]
    sizes: Mapping[str, Sizes]


class Log:
    """Keeps what TensorRT says went wrong, which its functions do not return."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def text(self) -> str:
        return " / ".join(self.messages)


_LOGS: dict[str, tuple[Log, Any]] = {}
"""One per library: TensorRT keeps the first logger it meets as long as the process lives."""


def log_of(library: ModuleType) -> tuple[Log, Any]:
    """What a library's messages are kept in, and the logger to give it."""
    if library.__name__ not in _LOGS:
        kept = Log()

        class Logger(library.ILogger):  # type: ignore[misc, name-defined]
            def log(self, severity: Any, message: str) -> None:
                if severity in (self.Severity.ERROR, self.Severity.INTERNAL_ERROR):
                    kept.messages.append(message)

        _LOGS[library.__name__] = (kept, Logger())
    return _LOGS[library.__name__]


@dataclass(frozen=True)
class Parsed:
    """A parsed network and what must live as long as it does."""

    library: ModuleType
    log: Log
    builder: Any
    network: Any
    parser: Any
    layers: Sequence[Any]


def parse(
    library: ModuleType, path: str | os.PathLike[str], *, flags: int = 0, fused_attention: bool
) -> Parsed:
    """Parses an ONNX file.

    Args:
        library: TensorRT or TensorRT-RTX.
        path: a graph of a bundle, its weights file beside it.
        flags: of the network.
        fused_attention: refuse attention that there is no fused kernel for.
    Raises:
        ResourceError: there is no such file.
        UnsupportedOpError: the parser refuses a node; names node and op.
        InputModelError: the file or its weights cannot be read.
    """
    if not Path(path).is_file():
        raise ResourceError(f"{path}: found no such file, expected the ONNX graph of a bundle")
    log, logger = log_of(library)
    log.messages.clear()
    builder = library.Builder(logger)
    network = builder.create_network(flags)
    # The network reads weights that the parser holds.
    parser = library.OnnxParser(network, logger)
    if not parser.parse_from_file(os.fspath(path)):
        raise _refusal(path, parser)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    if not fused_attention:
        _let_attention_decompose(library, layers)
    return Parsed(library, log, builder, network, parser, layers)


def built(
    parsed: Parsed,
    path: str | os.PathLike[str],
    config: Any,
    sizes: Mapping[str, Sizes],
    capabilities: Sequence[str],
) -> Engine:
    """The engine of a parsed network.

    Raises:
        InputModelError: the network cannot be built; says why in TensorRT's words.
        ValueError: sizes are missing or not in order.
    """
    used = _set_sizes(parsed.builder, config, parsed.network, sizes)
    content = parsed.builder.build_serialized_network(parsed.network, config)
    if content is None:
        raise InputModelError(
            f"{path}: TensorRT cannot build this graph for {', '.join(capabilities)}: "
            f"{parsed.log.text() or 'it gives no reason'}; change the op it names, or its lowering"
        )
    layers = tuple(map(_layer, parsed.layers))
    return Engine(bytes(content), layers, tuple(capabilities), used)


def _refusal(path: str | os.PathLike[str], parser: Any) -> InputModelError:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    nodes = [
        f"node {error.node_name()!r} ({error.node_operator()}): {error.code().name}, {error.desc()}"
        for error in errors
        if error.node_operator()
    ]
    if nodes:
        return UnsupportedOpError(
            f"{path}: TensorRT's parser refuses {' / '.join(nodes)}; "
            "lower the op to a form it takes"
        )
    return InputModelError(
        f"{path}: TensorRT cannot read the file or the weights it names: "
        f"{' / '.join(error.desc() for error in errors)}; export the bundle again"
    )


def _let_attention_decompose(library: ModuleType, layers: Sequence[Any]) -> None:
    for layer in layers:
        if layer.type == library.LayerType.ATTENTION_INPUT:
            # The bindings return the base class; this is their way to the derived one.
            layer.__class__ = library.IAttentionInputLayer
            layer.attention.decomposable = True


def _set_sizes(
    builder: Any, config: Any, network: Any, sizes: Mapping[str, Sizes]
) -> dict[str, Sizes]:
    """Gives the engine its one profile of input shapes; returns the sizes that inputs have."""
    used: dict[str, Sizes] = {}
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = [
            (size, size, size) if size >= 0 else _sizes_of(tensor, axis, sizes)
            for axis, size in enumerate(tensor.shape)
        ]
        dynamic = [axis for axis, size in enumerate(tensor.shape) if size < 0]
        used |= {tensor.get_dimension_name(axis): shape[axis] for axis in dynamic}
        if dynamic:
            least, best, greatest = zip(*shape, strict=True)
            profile.set_shape(tensor.name, least, best, greatest)
    config.add_optimization_profile(profile)
    return used


def _sizes_of(tensor: Any, axis: int, sizes: Mapping[str, Sizes]) -> Sizes:
    dimension = tensor.get_dimension_name(axis)
    if dimension not in sizes:
        raise ValueError(
            f"sizes: found {', '.join(sizes) or 'none'}, expected {dimension!r} among them, the "
            f"name of dimension {axis} of input {tensor.name!r}; give its least, best and greatest"
        )
    least, best, greatest = sizes[dimension]
    if not 1 <= least <= best <= greatest:
        raise ValueError(
            f"sizes: found {sizes[dimension]} for {dimension!r}, expected 1 <= least <= best <= "
            "greatest"
        )
    return least, best, greatest


def _layer(layer: Any) -> Layer:
    output = layer.get_output(0)
    return Layer(layer.name, layer.type.name, tuple(output.shape), output.dtype.name)

"""ONNX graph → TensorRT-RTX engine, for GPUs that this machine need not have.

    engine = build_engine("bundle/graphs/denoiser.onnx", sizes={"batch": (1, 2, 4)})
    Path("denoiser.engine").write_bytes(engine.content)
    attention = [layer for layer in engine.layers if layer.kind == "ATTENTION_INPUT"]

The parser finds the weights where the graph says they lie, so the safetensors file of a bundle
serves as it is; the engine holds a copy of them. Kernels are compiled when the engine is loaded, on
the user's GPU. Building takes the layers apart into one network first, and that network is what
`Engine.layers` shows: the engine itself can only be opened where there is a GPU.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimize.ir.errors import InputModelError, UnsupportedOpError
from optimize.runtime.errors import ResourceError

try:
    import tensorrt_rtx_bindings as tensorrt
except ImportError as missing:
    raise ResourceError(
        "tensorrt_rtx_bindings: found no such package, which builds engines for TensorRT-RTX; "
        "pip install 'optimize[rtx]'"
    ) from missing

Sizes = tuple[int, int, int]
"""The least size of a dimension, the size to be fastest at, the greatest size."""

CAPABILITIES = ("SM89", "SM120")
"""GeForce RTX 40 and RTX 50."""

SIZES: Mapping[str, Sizes] = {"batch": (1, 2, 4)}
"""A batch of 2 is one picture or video with classifier-free guidance."""


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


def build_engine(
    path: str | os.PathLike[str],
    *,
    capabilities: Sequence[str] = CAPABILITIES,
    sizes: Mapping[str, Sizes] = SIZES,
    fused_attention: bool = False,
) -> Engine:
    """Builds an engine from an ONNX file.

    Args:
        path: a graph of a bundle, its weights file beside it.
        capabilities: TensorRT's names of the GPUs it shall run on, at least one.
        sizes: name of a dimension → sizes; every dimension that a request decides needs one.
        fused_attention: refuse attention that TensorRT-RTX has no fused kernel for. Float32 has
            none: such attention becomes matrix products and a softmax.
    Raises:
        ResourceError: there is no such file.
        UnsupportedOpError: the parser refuses a node; names node and op.
        InputModelError: the file or its weights cannot be read, or the network cannot be built;
            says why in TensorRT's words.
        ValueError: a capability is unknown, or sizes are missing or not in order.
    Source: TensorRT-RTX 1.7 Python API, `IBuilderConfig.set_compute_capability`.
    """
    if not Path(path).is_file():
        raise ResourceError(f"{path}: found no such file, expected the ONNX graph of a bundle")
    _LOG.messages.clear()
    builder = tensorrt.Builder(_LOG)
    network = builder.create_network(0)
    # The network reads weights that the parser holds.
    parser = tensorrt.OnnxParser(network, _LOG)
    if not parser.parse_from_file(os.fspath(path)):
        raise _refusal(path, parser)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    if not fused_attention:
        _let_attention_decompose(layers)
    config = builder.create_builder_config()
    _set_capabilities(config, capabilities)
    used = _set_sizes(builder, config, network, sizes)
    content = builder.build_serialized_network(network, config)
    if content is None:
        raise InputModelError(
            f"{path}: TensorRT-RTX cannot build this graph for {', '.join(capabilities)}: "
            f"{_LOG.text() or 'it gives no reason'}; change the op it names, or its lowering"
        )
    return Engine(bytes(content), tuple(map(_layer, layers)), tuple(capabilities), used)


class _Log(tensorrt.ILogger):  # type: ignore[misc]
    """Keeps what TensorRT says went wrong, which its functions do not return."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity in (self.Severity.ERROR, self.Severity.INTERNAL_ERROR):
            self.messages.append(message)

    def text(self) -> str:
        return " / ".join(self.messages)


_LOG = _Log()
"""One for all: TensorRT keeps the first logger it meets as long as the process lives."""


def _refusal(path: str | os.PathLike[str], parser: Any) -> InputModelError:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    nodes = [
        f"node {error.node_name()!r} ({error.node_operator()}): {error.code().name}, {error.desc()}"
        for error in errors
        if error.node_operator()
    ]
    if nodes:
        return UnsupportedOpError(
            f"{path}: TensorRT-RTX's parser refuses {' / '.join(nodes)}; "
            "lower the op to a form it takes"
        )
    return InputModelError(
        f"{path}: TensorRT-RTX cannot read the file or the weights it names: "
        f"{' / '.join(error.desc() for error in errors)}; export the bundle again"
    )


def _let_attention_decompose(layers: Sequence[Any]) -> None:
    for layer in layers:
        if layer.type == tensorrt.LayerType.ATTENTION_INPUT:
            # The bindings return the base class; this is their way to the derived one.
            layer.__class__ = tensorrt.IAttentionInputLayer
            layer.attention.decomposable = True


def _set_capabilities(config: Any, capabilities: Sequence[str]) -> None:
    known = {
        name: capability
        for name, capability in tensorrt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    unknown = [name for name in capabilities if name not in known]
    if unknown or not capabilities:
        raise ValueError(
            f"capabilities: found {', '.join(unknown) or 'none'}, "
            f"expected some of {', '.join(known)}"
        )
    config.num_compute_capabilities = len(capabilities)
    for index, name in enumerate(capabilities):
        config.set_compute_capability(known[name], index)


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

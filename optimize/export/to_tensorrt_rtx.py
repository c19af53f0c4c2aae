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
from typing import Any

from optimize.export.tensorrt_network import Engine, Layer, Sizes, built, parse
from optimize.runtime.errors import ResourceError

try:
    import tensorrt_rtx_bindings as tensorrt
except ImportError as missing:
    raise ResourceError(
        "tensorrt_rtx_bindings: found no such package, which builds engines for TensorRT-RTX; "
        "pip install 'optimize[rtx]'"
    ) from missing

__all__ = ["CAPABILITIES", "SIZES", "Engine", "Layer", "Sizes", "build_engine"]

CAPABILITIES = ("SM89", "SM120")
"""GeForce RTX 40 and RTX 50."""

SIZES: Mapping[str, Sizes] = {"batch": (1, 2, 4)}
"""A batch of 2 is one picture or video with classifier-free guidance."""


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
    parsed = parse(tensorrt, path, fused_attention=fused_attention)
    config = parsed.builder.create_builder_config()
    _set_capabilities(config, capabilities)
    return built(parsed, path, config, sizes, capabilities)


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

"""ONNX graph → TensorRT engine for the GPU of this machine, our Triton kernels inside.

    engine = build_engine("bundle/graphs/denoiser.onnx", sizes={"batch": (1, 2, 4)})

Kernels become plugins that are compiled ahead of time: the engine holds their code, and needs
neither Triton nor Python to run. TensorRT builds for the GPU it sees, so this runs on the machine,
or one like it, that serves the engine. The network keeps the dtypes of the graph.
"""

import os
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

from optimize.export.tensorrt_network import Engine, Sizes, built, parse
from optimize.export.tensorrt_plugins import register_plugins
from optimize.runtime import machine
from optimize.runtime.errors import DeviceError, ResourceError

MODULE = "tensorrt"


def build_engine(
    path: str | os.PathLike[str],
    *,
    sizes: Mapping[str, Sizes],
    fused_attention: bool = False,
) -> Engine:
    """Builds an engine from an ONNX file.

    Args:
        path: a graph of a bundle, its weights file beside it.
        sizes: name of a dimension → sizes; every dimension that a request decides needs one.
        fused_attention: refuse attention that TensorRT has no fused kernel for.
    Raises:
        ResourceError: TensorRT is not installed, or there is no such file.
        DeviceError: this machine has no NVIDIA GPU.
        UnsupportedOpError, InputModelError, ValueError: as for TensorRT-RTX.
    Source: TensorRT 10.9 Python API, `NetworkDefinitionCreationFlag`.
    """
    library = _library()
    capability = machine.gpu_capability()
    if capability is None:
        raise DeviceError(
            "tensorrt: found no NVIDIA GPU, expected the one the engine is for; export on the "
            "machine that serves it, or for tensorrt-rtx, which needs no GPU to build"
        )
    register_plugins(int(capability.removeprefix("SM")))
    parsed = parse(library, path, flags=_flags(library), fused_attention=fused_attention)
    config = parsed.builder.create_builder_config()
    return built(parsed, path, config, sizes, [capability])


def _library() -> ModuleType:
    try:
        return import_module(MODULE)
    except ImportError as error:
        raise ResourceError(
            "tensorrt: found no such package, which builds engines for TensorRT; "
            "pip install 'optimize[tensorrt]'"
        ) from error


def _flags(library: ModuleType) -> int:
    """Keep dtypes as they are; of plugins take the code that was compiled ahead of time."""
    flags = 0
    for name in ("STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS"):
        flag = getattr(library.NetworkDefinitionCreationFlag, name, None)
        # TensorRT 11 has strong types only, and no flag for them any more.
        if flag is not None:
            flags |= 1 << int(flag)
    return flags

"""`tile_attention` for TensorRT: the Triton kernel, compiled ahead of time into the engine.

    register()
    tiles = tensorrt.plugin.op.optimize.tile_attention(query, key, value, frames=8, …)
    network.add_plugin(tiles, aot=True)

The plugin has no mask: a site with one keeps the standard ops of `onnx_lowering`. The batch may be
dynamic, all other sizes are constants of the engine. In 16 bits a program for capability 90 or 100
asks for up to 129 KiB of shared memory. TensorRT up to 11.1 reads attributes that are numbers with
NumPy below 2.4 only. No engine has been built with the plugin yet.
"""

# The kernel is Triton, whose functions have no Python types.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from optimize.kernels.tile_attention import triton_kernel
from optimize.kernels.tile_attention.pattern import TilePattern, pattern_of
from optimize.kernels.tile_attention.schema import TRITON_WIDTH
from optimize.kernels.tile_attention.triton_blocks import Blocks, blocks_of
from optimize.kernels.triton_compile import POINTERS

NAME = "optimize::tile_attention"
TENSORS = ("query", "key", "value", "result")
INSTALL = "expected TensorRT 10.9 or newer; pip install 'optimize[tensorrt]'"


@triton.jit
def _tile_attention(query, key, value, result, fixed):
    """The kernel of `triton_kernel` with four pointers, no mask, and the rest as constants."""
    triton_kernel._kernel(query, key, value, None, result, *fixed)


@dataclass(frozen=True)
class Compiled:
    """A kernel that TensorRT can launch.

    Attributes:
        name: of the entry.
        ptx: the code; the parameters of the entry are pointers to query, key, value and result.
        threads: per program.
        shared_bytes: of dynamic shared memory, per program.
        programs: per head and sample.
    """

    name: str
    ptx: str
    threads: int
    shared_bytes: int
    programs: int


def arguments(
    pattern: TilePattern,
    heads: int,
    width: int,
    value_width: int,
    scale: float | None,
    blocks: Blocks,
) -> tuple[Any, ...]:
    """What the kernel takes after its tensors, which are contiguous."""
    scale = 1 / math.sqrt(width) if scale is None else scale
    strides, value_strides = (
        (heads * pattern.length * size, pattern.length * size, size)
        for size in (width, value_width)
    )
    fixed = triton_kernel.constants(pattern, width, value_width, blocks) | {
        "scale": scale * math.log2(math.e),
        "heads": heads,
        "query_strides": strides,
        "key_strides": strides,
        "value_strides": value_strides,
        "mask_strides": None,
        "result_strides": value_strides,
    }
    names = triton_kernel._kernel.arg_names
    return tuple(fixed[name] for name in names[names.index("scale") :])


def compiled(
    capability: int,
    dtype: torch.dtype,
    pattern: TilePattern,
    heads: int,
    width: int,
    value_width: int,
    scale: float | None = None,
) -> Compiled:
    """Compiles the kernel for a GPU that need not be here; needs no TensorRT.

    Args:
        capability: 10 * major + minor, at least 80.
        dtype: float16, bfloat16 or float32.
        heads: N.
        width: D, at most 128.
        value_width: Dv, at most 128.
        scale: what the scores are multiplied by; None for 1 / sqrt(D).
    Raises:
        ValueError: the GPU is too old or the heads are too wide.
    """
    if max(width, value_width) > TRITON_WIDTH:
        raise ValueError(
            f"tile_attention: found head dimensions {width} and {value_width}, expected at most "
            f"{TRITON_WIDTH}; keep the standard ONNX ops for this site"
        )
    blocks = blocks_of(capability, dtype, max(width, value_width))
    given = arguments(pattern, heads, width, value_width, scale, blocks)
    fixed = {(len(TENSORS), place): item for place, item in enumerate(given)}
    signature = dict.fromkeys(TENSORS, POINTERS[dtype]) | {"fixed": ("constexpr",) * len(given)}
    # TensorRT's tensors stand at multiples of 256 bytes.
    aligned = {(position,): [["tt.divisibility", 16]] for position in range(len(TENSORS))}
    kernel = triton.compile(
        ASTSource(_tile_attention, signature, fixed, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": blocks.warps, "num_stages": blocks.stages},
    )
    details = kernel.metadata
    assert details.global_scratch_size == details.profile_scratch_size == 0
    return Compiled(
        name=details.name,
        ptx=_without_scratch(kernel.asm["ptx"]),
        threads=32 * details.num_warps,
        shared_bytes=details.shared,
        programs=triton_kernel.programs(pattern, blocks),
    )


def _without_scratch(ptx: str) -> str:
    """Removes the parameters that Triton adds for scratch memory, which the kernel does not use.

    TensorRT passes the tensors and nothing else, but a launch reads an argument per parameter.
    """
    entry = re.search(r"\.entry \w+\((.*?)\n\)", ptx, re.DOTALL)
    assert entry is not None
    start, end = entry.span(1)
    parameters = entry[1].split(",")
    kept = ptx[:start] + ",".join(parameters[: len(TENSORS)]) + ptx[end:]
    assert not any(name.split()[-1] in kept for name in parameters[len(TENSORS) :])
    return kept


def register(capability: int | None = None) -> None:
    """Registers the plugin with TensorRT, once in a process.

    Its attributes are those of the op; `references` is an int64 array, a `scale` of 0 stands for
    1 / sqrt(D). TensorRT may choose float16, bfloat16 or float32 where the network leaves it open.

    Args:
        capability: of the GPU the engine is for, 10 * major + minor; None for that of this machine.
    Raises:
        ImportError: there is no TensorRT that compiles plugins ahead of time.
        RuntimeError: `capability` is None and this machine has no GPU.
    """
    try:
        import tensorrt
        import tensorrt.plugin as trtp
    except ImportError as error:
        raise ImportError(f"tile_attention: found no tensorrt.plugin, {INSTALL}") from error
    if not hasattr(trtp, "aot_impl"):
        raise ImportError(f"tile_attention: found TensorRT {tensorrt.__version__}, {INSTALL}")
    target = _capability_here() if capability is None else capability
    kinds = tensorrt.DataType
    dtypes = {kinds.FLOAT: torch.float32, kinds.HALF: torch.float16, kinds.BF16: torch.bfloat16}

    # TensorRT reads the annotations: they must be there, and the same in all three functions.
    @trtp.register(NAME)
    def describe(
        query: trtp.TensorDesc,
        key: trtp.TensorDesc,
        value: trtp.TensorDesc,
        frames: int,
        tokens_per_frame: int,
        references: NDArray[np.int64],
        prefix: int,
        suffix: int,
        scale: float,
    ) -> trtp.TensorDesc:
        batch, heads, length, _ = query.shape_expr
        result = query.like()
        # A new shape, not a new last size: `like` shares the shape in some releases.
        shape = (batch, heads, length, value.shape_expr[3])
        result.shape_expr = trtp.ShapeExprs.from_tuple(shape)
        return result

    @trtp.autotune(NAME)
    def combinations(
        query: trtp.TensorDesc,
        key: trtp.TensorDesc,
        value: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        return [
            trtp.AutoTuneCombination(", ".join([kind] * len(TENSORS)), "LINEAR")
            for kind in ("FP32", "FP16", "BF16")
        ]

    @trtp.aot_impl(NAME)
    def implement(
        query: trtp.TensorDesc,
        key: trtp.TensorDesc,
        value: trtp.TensorDesc,
        frames: int,
        tokens_per_frame: int,
        references: NDArray[np.int64],
        prefix: int,
        suffix: int,
        scale: float,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymExprs]:
        pattern = pattern_of(frames, tokens_per_frame, references.tolist(), prefix, suffix)
        heads, width, value_width = _sizes(pattern, *(list(x.shape) for x in (query, key, value)))
        kernel = compiled(
            target, dtypes[query.dtype], pattern, heads, width, value_width, scale or None
        )
        launch = trtp.KernelLaunchParams()
        launch.grid_x = kernel.programs
        launch.grid_y = query.shape_expr[0] * heads
        launch.block_x = kernel.threads
        launch.shared_mem = kernel.shared_bytes
        return kernel.name, kernel.ptx, launch, trtp.SymIntExprs(0)


def _sizes(
    pattern: TilePattern, query: list[int], key: list[int], value: list[int]
) -> tuple[int, int, int]:
    """N, D and Dv of shapes in which -1 is a size that a request decides."""
    heads, width, value_width = query[1], query[-1], value[-1]
    like_query = [heads, pattern.length, width]
    found = [query[1:], key[1:], value[1:]]
    expected = [like_query, like_query, [heads, pattern.length, value_width]]
    if found != expected or min(heads, width, value_width) < 1:
        raise ValueError(
            f"tile_attention: found query {query}, key {key} and value {value}, expected "
            f"[B, N, {pattern.length}, D] twice and [B, N, {pattern.length}, Dv], with no dynamic "
            "size but B; build an engine for each video size"
        )
    return heads, width, value_width


def _capability_here() -> int:
    if not torch.cuda.is_available():
        raise RuntimeError(
            "tile_attention: found no GPU, expected one to compile the kernel for; say which one "
            "the engine is for, as in register(capability=90)"
        )
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor

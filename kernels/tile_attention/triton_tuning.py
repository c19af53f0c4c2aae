"""What the Triton kernel uses of a GPU, compiled without one, and a search for block sizes."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import triton

from optimize.kernels.tile_attention import triton_kernel
from optimize.kernels.tile_attention.pattern import TilePattern, pattern_of, spread_references
from optimize.kernels.tile_attention.schema import form_of
from optimize.kernels.tile_attention.triton_blocks import Blocks, blocks_of
from optimize.kernels.triton_compile import POINTERS, Usage, compile_ahead, usage_of

DEFAULT_PATTERN = TilePattern(8, 3600, spread_references(8, 2))

# Per multiprocessor: threads, KiB of shared memory. Registers are 65,536 on all of them, and each
# program takes 1 KiB of shared memory besides its own.
MULTIPROCESSORS = {80: (2048, 164), 90: (2048, 228), 100: (2048, 228), 120: (1536, 100)}


@dataclass(frozen=True)
class Resources(Usage):
    """What one compiled kernel uses, and how much of a multiprocessor that leaves in use.

    Attributes:
        warps: per program.
        programs: how many fit on a multiprocessor.
        occupancy: the share of its threads that are then in use, in [0, 1].
    """

    warps: int
    programs: int
    occupancy: float


def compile_call(
    capability: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    frames: int,
    tokens_per_frame: int,
    references: Sequence[int],
    prefix: int = 0,
    suffix: int = 0,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> Any | None:
    """The kernel that a call of the op runs on a GPU; None where the op computes densely there.

    Args:
        capability: 10 * major + minor of the GPU.
        query: and the others as the op takes them; of tensors only dtype and width count.
    """
    pattern = pattern_of(frames, tokens_per_frame, references, prefix, suffix)
    width, value_width = query.shape[3], value.shape[3]
    form = form_of("cuda", query.dtype, max(width, value_width))
    if form != "triton" or pattern.is_dense:
        return None
    kind = None if mask is None else "bool" if mask.dtype == torch.bool else "added"
    return compile_for(capability, query.dtype, width, kind, pattern, value_width=value_width)


def compile_for(
    capability: int,
    dtype: torch.dtype,
    width: int,
    mask: str | None = None,
    pattern: TilePattern = DEFAULT_PATTERN,
    blocks: Blocks | None = None,
    value_width: int | None = None,
) -> Any:
    """The kernel for a GPU that need not be here, as Triton's compiled kernel.

    Args:
        capability: 10 * major + minor.
        dtype: float16, bfloat16 or float32.
        width: head dimension.
        mask: None, "bool" or "added".
        value_width: head dimension of the values; by default `width`.
    """
    value_width = width if value_width is None else value_width
    blocks = blocks or blocks_of(capability, dtype, max(width, value_width))
    tensors = ("query", "key", "value", "mask", "result")
    kinds: dict[str, Any] = dict.fromkeys(tensors, POINTERS[dtype])
    kinds |= {"scale": "fp32", "heads": "i32"}
    kinds |= {f"{name}_strides": ("i32",) * (2 if name == "mask" else 3) for name in tensors}
    constants: dict[str, Any] = triton_kernel.constants(pattern, width, value_width, blocks)
    if mask is None:
        constants |= {"mask": None, "mask_strides": None}
    elif mask == "bool":
        kinds["mask"] = "*i8"
    return compile_ahead(
        triton_kernel._kernel,
        kinds,
        constants,
        capability,
        unaligned=("heads", "mask_strides"),
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )


def resources_of(kernel: Any, capability: int) -> Resources:
    """What a compiled kernel uses, and its estimated occupancy."""
    used, warps = usage_of(kernel), kernel.metadata.num_warps
    programs = programs_at_once(capability, used.registers, used.shared_bytes, warps)
    share = programs * warps * 32 / MULTIPROCESSORS[capability][0]
    return Resources(**asdict(used), warps=warps, programs=programs, occupancy=share)


def programs_at_once(capability: int, registers: int, shared_bytes: int, warps: int) -> int:
    """How many programs fit on a multiprocessor: by threads, by registers, by shared memory.

    A warp is given registers in units of 256.
    """
    threads, kibibytes = MULTIPROCESSORS[capability]
    per_warp = -(-registers * 32 // 256) * 256
    return min(
        threads // (32 * warps),
        65536 // (per_warp * warps),
        kibibytes * 1024 // (shared_bytes + 1024),
    )


def resource_table(
    capabilities: Iterable[int] = tuple(MULTIPROCESSORS),
    dtypes: Iterable[torch.dtype] = (torch.bfloat16, torch.float32),
    widths: Iterable[int] = (64, 128),
    mask: str | None = None,
) -> dict[str, Resources]:
    """Compiles the kernel for each kind of GPU, prints what it uses, and returns it by name."""
    widths, dtypes = tuple(widths), tuple(dtypes)
    found = {}
    for capability in capabilities:
        for dtype in dtypes:
            for width in widths:
                kernel = compile_for(capability, dtype, width, mask)
                name = f"sm_{capability} {str(dtype).removeprefix('torch.')} D{width}"
                found[name] = resources_of(kernel, capability)
                print(f"{name:22} {found[name]}", flush=True)
    return found


CANDIDATES = tuple(
    Blocks(queries, keys, warps, stages)
    for queries in (64, 128)
    for keys in (16, 32, 64, 128)
    for warps in (4, 8)
    for stages in (2, 3, 4)
)


def autotune(
    dtypes: Iterable[torch.dtype] = (torch.bfloat16, torch.float32),
    widths: Iterable[int] = (64, 128),
    pattern: TilePattern = DEFAULT_PATTERN,
    heads: int = 8,
) -> dict[tuple[int, int, int], Blocks]:
    """Times every candidate on this machine's GPU and prints its rows for `triton_blocks.TABLE`.

    Candidates that do not fit into the GPU's shared memory or registers are passed over.
    """
    major, minor = torch.cuda.get_device_capability()
    widths, rows = tuple(widths), {}
    for dtype in dtypes:
        for width in widths:
            shape = (1, pattern.length, heads, width)
            query, key, value = (
                torch.randn(shape, device="cuda").to(dtype).transpose(1, 2) for _ in range(3)
            )
            timed = []
            for blocks in CANDIDATES:
                run = partial(triton_kernel.launch, query, key, value, pattern, blocks=blocks)
                try:
                    timed.append((triton.testing.do_bench(run, return_mode="median"), blocks))
                except triton.runtime.errors.OutOfResources:
                    continue
            milliseconds, best = min(timed, key=lambda item: item[0])
            row = (10 * major + minor, dtype.itemsize, width)
            rows[row] = best
            print(f"{row}: {best},  # {milliseconds:.3f} ms")
    return rows

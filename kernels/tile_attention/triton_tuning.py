"""What the Triton kernel uses of a GPU, compiled without one, and a search for block sizes."""

import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from optimize.kernels.tile_attention import triton_kernel
from optimize.kernels.tile_attention.pattern import TilePattern, spread_references
from optimize.kernels.tile_attention.triton_blocks import Blocks, blocks_of

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
DEFAULT_PATTERN = TilePattern(8, 3600, spread_references(8, 2))

# Per multiprocessor: threads, KiB of shared memory. Registers are 65,536 on all of them, and each
# program takes 1 KiB of shared memory besides its own.
MULTIPROCESSORS = {80: (2048, 164), 90: (2048, 228), 100: (2048, 228), 120: (1536, 100)}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel uses.

    Attributes:
        registers: per thread.
        spill_bytes: stack and local memory per thread.
        shared_bytes: per program.
        warps: per program.
        programs: how many fit on a multiprocessor.
        occupancy: the share of its threads that are then in use, in [0, 1].
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    warps: int
    programs: int
    occupancy: float


def compile_for(
    capability: int,
    dtype: torch.dtype,
    width: int,
    mask: str | None = None,
    pattern: TilePattern = DEFAULT_PATTERN,
    blocks: Blocks | None = None,
) -> Any:
    """The kernel for a GPU that need not be here, as Triton's compiled kernel.

    Args:
        capability: 10 * major + minor.
        dtype: float16, bfloat16 or float32.
        width: head dimension.
        mask: None, "bool" or "added".
    """
    blocks = blocks or blocks_of(capability, dtype, width)
    pointer = POINTERS[dtype]
    kinds: dict[str, Any] = dict.fromkeys(("query", "key", "value", "mask", "result"), pointer)
    kinds |= {"scale": "fp32", "heads": "i32"}
    names = ("query", "key", "value", "mask", "result")
    kinds |= {f"{name}_strides": ("i32",) * (2 if name == "mask" else 3) for name in names}
    constants: dict[str, Any] = triton_kernel.constants(pattern, width, width, blocks)
    if mask is None:
        kinds |= {"mask": "constexpr", "mask_strides": "constexpr"}
        constants |= {"mask": None, "mask_strides": None}
    elif mask == "bool":
        kinds["mask"] = "*i8"
    signature = {
        name: "constexpr" if name in constants else kinds[name]
        for name in triton_kernel._kernel.arg_names
    }
    return triton.compile(
        ASTSource(triton_kernel._kernel, signature, constants, _alignment(signature)),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": blocks.warps, "num_stages": blocks.stages},
    )


def _alignment(signature: dict[str, Any]) -> dict[tuple[int, ...], Any]:
    """What a launch finds: addresses and strides are multiples of 16, except the mask's strides."""
    aligned = [["tt.divisibility", 16]]
    attributes: dict[tuple[int, ...], Any] = {}
    for position, (name, kind) in enumerate(signature.items()):
        if isinstance(kind, tuple) and name != "mask_strides":
            attributes |= {(position, place): aligned for place in range(len(kind))}
        elif isinstance(kind, str) and kind.startswith("*"):
            attributes[(position,)] = aligned
    return attributes


def resources_of(kernel: Any, capability: int) -> Resources:
    """What a compiled kernel uses, as cuobjdump says, and its estimated occupancy."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(kernel.asm["cubin"])
        listing = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", binary],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    (line,) = [line for line in listing.splitlines() if "REG:" in line]
    used = {name: int(size) for name, size in re.findall(r"([A-Z]+):(\d+)", line)}
    warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
    programs = programs_at_once(capability, used["REG"], shared, warps)
    share = programs * warps * 32 / MULTIPROCESSORS[capability][0]
    spilled = used["STACK"] + used["LOCAL"]
    return Resources(used["REG"], spilled, shared, warps, programs, share)


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

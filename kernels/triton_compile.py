"""Compiles Triton kernels for GPUs that need not be here, and says what they use of one."""

import re
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90, 100, 120)
"""Compute capabilities, 10 * major + minor, of A100, H100, B200 and RTX 50."""

POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
}


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel uses.

    Attributes:
        registers: per thread.
        spill_bytes: stack and local memory per thread.
        shared_bytes: shared memory per program.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int


def compile_ahead(
    function: Any,
    kinds: Mapping[str, Any],
    constants: Mapping[str, Any],
    capability: int,
    unaligned: Collection[str] = (),
    **options: Any,
) -> Any:
    """A kernel for a GPU that need not be here, as Triton's compiled kernel.

    Args:
        function: a Triton function.
        kinds: argument → Triton's type of it, or a tuple of these; not of constants.
        constants: argument → value, None among them.
        capability: 10 * major + minor.
        unaligned: arguments that are no multiples of 16; addresses, strides and sizes are, else.
        options: of the compiler, such as num_warps.
    """
    signature = {
        name: "constexpr" if name in constants else kinds[name] for name in function.arg_names
    }
    aligned = [["tt.divisibility", 16]]
    attributes: dict[tuple[int, ...], Any] = {}
    for position, (name, kind) in enumerate(signature.items()):
        if name in unaligned:
            continue
        if isinstance(kind, tuple):
            attributes |= {(position, place): aligned for place in range(len(kind))}
        elif kind.startswith(("*", "i")):
            attributes[(position,)] = aligned
    return triton.compile(
        ASTSource(function, signature, dict(constants), attributes),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )


def usage_of(kernel: Any) -> Usage:
    """What a compiled kernel uses, as cuobjdump says."""
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
    # Spilled registers lie on the stack, which is local memory.
    return Usage(used["REG"], used["STACK"] + used["LOCAL"], kernel.metadata.shared)

"""The Triton kernel of `solver_step`, compiled ahead of time for the arguments of a call."""

from collections.abc import Sequence
from typing import Any

import torch

from optimize.kernels.solver_step import triton_kernel
from optimize.kernels.triton_compile import POINTERS, compile_ahead


def compile_call(
    capability: int,
    latent: torch.Tensor,
    output: torch.Tensor,
    kept: Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    pattern: str,
    noise: torch.Tensor | None = None,
    guidance_scale: torch.Tensor | None = None,
) -> Any:
    """The kernel that a call runs on a GPU, as Triton's compiled kernel.

    Args:
        capability: 10 * major + minor of the GPU.
        latent: and the others as the op takes them; of tensors only dtype and size count.
    """
    pointer = POINTERS[latent.dtype]
    constants: dict[str, Any] = {"PATTERN": pattern, "BLOCK": triton_kernel.block(latent.dtype)}
    constants |= {} if noise is not None else {"noise": None}
    constants |= {} if guidance_scale is not None else {"guidance_scale": None}
    return compile_ahead(
        triton_kernel._kernel,
        {
            **dict.fromkeys(("latent", "noise", "guidance_scale", "coefficients"), pointer),
            "output": POINTERS[output.dtype],
            "kept": (pointer,) * len(kept),
            "results": (pointer,) * len(pattern.split(",")),
            "size": "i32",
        },
        constants,
        capability,
        unaligned=() if latent.numel() % 16 == 0 else ("size",),
        num_warps=triton_kernel.WARPS,
        enable_fp_fusion=False,
    )

"""`solver_step` for a GPU: each column is read once, each result written once."""

# The kernel is Triton, whose functions have no Python types.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment"

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from optimize.kernels.solver_step.pattern import rows_of

WARPS = 4
THREAD_BYTES = 16
"""What a thread reads of each state tensor: one vector. With more, the layouts that suit a 16-bit
output and the state differ, and values pass through shared memory."""


def block(dtype: torch.dtype) -> int:
    """How many elements one program of the kernel computes."""
    return WARPS * 32 * THREAD_BYTES // dtype.itemsize


@triton.jit
def _kernel(
    latent,
    output,
    kept,
    noise,
    guidance_scale,
    coefficients,
    results,
    size,
    PATTERN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of elements of every result.

    kept and results are tuples of pointers; noise and guidance_scale may be None. The loads of
    columns that no row takes are removed by the compiler.
    """
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = position < size
    own = tl.load(latent + position, inside)
    prediction = tl.load(output + position, inside).to(own.dtype)
    if guidance_scale is not None:
        conditional = tl.load(output + size + position, inside).to(own.dtype)
        prediction = prediction + tl.load(guidance_scale) * (conditional - prediction)
    columns = (own, prediction)
    for age in tl.static_range(len(kept)):
        columns = columns + (tl.load(kept[age] + position, inside),)
    if noise is not None:
        columns = columns + (tl.load(noise + position, inside),)
    for row in tl.static_range(len(results)):
        total = None
        for place in tl.static_range(len(columns)):
            # The words of the pattern are one letter longer than the columns, by the comma.
            if PATTERN[row * (len(columns) + 1) + place] != "0":
                term = columns[place]
                if PATTERN[row * (len(columns) + 1) + place] == "x":
                    term = term * tl.load(coefficients + row * len(columns) + place)
                total = term if total is None else total + term
        tl.store(results[row] + position, total, inside)


def launch(
    latent: torch.Tensor,
    output: torch.Tensor,
    kept: Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    pattern: str,
    noise: torch.Tensor | None = None,
    guidance_scale: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Runs the kernel; strided inputs are made contiguous first."""
    rows = rows_of(pattern, 2 + len(kept) + (noise is not None))
    results = [torch.empty(latent.shape, dtype=latent.dtype, device=latent.device) for _ in rows]
    size = latent.numel()
    if not size:
        return results
    _kernel[(triton.cdiv(size, block(latent.dtype)),)](
        latent.contiguous(),
        output.contiguous(),
        tuple(item.contiguous() for item in kept),
        None if noise is None else noise.contiguous(),
        guidance_scale,
        coefficients.contiguous(),
        tuple(results),
        size,
        PATTERN=pattern,
        BLOCK=block(latent.dtype),
        num_warps=WARPS,
        # A fused multiply-add rounds once where the contract rounds twice.
        enable_fp_fusion=False,
    )
    return results

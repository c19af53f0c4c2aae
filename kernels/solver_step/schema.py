"""`optimize::solver_step`: guidance, prediction, solver and history in one pass over memory."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from optimize.kernels.solver_step.cpu import in_place
from optimize.kernels.solver_step.pattern import operations, rows_of

STATE_DTYPES = (torch.float32, torch.float64)


@torch.library.custom_op("optimize::solver_step", mutates_args=())
def solver_step(
    latent: torch.Tensor,
    output: torch.Tensor,
    kept: Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    pattern: str,
    noise: torch.Tensor | None = None,
    guidance_scale: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """The arithmetic of one denoising step, linear in all it reads.

        prediction = output, or with guidance: u + guidance_scale * (c - u), (u, c) = output
        columns    = (latent, prediction, *kept, noise if given)
        result[r]  = sum over c of coefficients[r, c] * columns[c]

    Everything is computed in the dtype of the latent; each product is rounded and then added, from
    left to right. So the plain sequence mul, mul, add, mul, add … has the same bits.

    Args:
        latent: [B, ...], float32 or float64.
        output: what the network returned, any float dtype: [B, ...], or with guidance [2B, ...]
            with the unconditional half first.
        kept: what earlier steps kept, each like `latent`.
        coefficients: [R, C], dtype of `latent`; C is the number of columns.
        pattern: one word per row, separated by commas, with one letter per column: '0' leaves the
            column out and never reads it (it may be NaN), '1' takes it as it is, 'x' multiplies it
            by its coefficient. "xxx,xx0" is a two-step solver, "0010" a row that copies.
        noise: like `latent`.
        guidance_scale: scalar, dtype of `latent`.
    Returns:
        R new contiguous tensors [B, ...], dtype of `latent`.
    Raises:
        ValueError: shapes, dtypes or the pattern do not fit.
    """
    _check(latent, output, kept, coefficients, pattern, noise, guidance_scale)
    if latent.is_cuda:
        # Triton takes a second to import, and a machine without a GPU may not have it.
        from optimize.kernels.solver_step.triton_kernel import launch

        return launch(latent, output, kept, coefficients, pattern, noise, guidance_scale)
    return in_place(latent, output, kept, coefficients, pattern, noise, guidance_scale)


@solver_step.register_fake
def _(
    latent: torch.Tensor,
    output: torch.Tensor,
    kept: Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    pattern: str,
    noise: torch.Tensor | None = None,
    guidance_scale: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    rows = _check(latent, output, kept, coefficients, pattern, noise, guidance_scale)
    return [latent.new_empty(latent.shape) for _ in rows]


@register_flop_formula(torch.ops.optimize.solver_step, get_raw=True)
def _flops(
    latent: torch.Tensor,
    output: torch.Tensor,
    kept: Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    pattern: str,
    noise: torch.Tensor | None = None,
    guidance_scale: torch.Tensor | None = None,
    **_: Any,
) -> int:
    return latent.numel() * operations(pattern, guidance_scale is not None)


def _check(
    latent: torch.Tensor,
    output: torch.Tensor,
    kept: Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    pattern: str,
    noise: torch.Tensor | None,
    guidance_scale: torch.Tensor | None,
) -> tuple[str, ...]:
    """The rows of the pattern, once everything fits."""
    dtype = latent.dtype
    if dtype not in STATE_DTYPES or latent.dim() == 0:
        raise ValueError(
            f"solver_step: found latent of rank {latent.dim()} and dtype {dtype}, "
            "expected [B, ...] float32 or float64"
        )
    if not output.dtype.is_floating_point:
        raise ValueError(
            f"solver_step: found output of dtype {output.dtype}, expected a float dtype"
        )
    batch = latent.shape[0] * (1 if guidance_scale is None else 2)
    _check_shape("output", output, [batch, *latent.shape[1:]])
    columns = [*((f"kept[{age}]", item) for age, item in enumerate(kept))]
    columns += [] if noise is None else [("noise", noise)]
    for name, column in columns:
        _check_dtype(name, column, dtype)
        _check_shape(name, column, list(latent.shape))
    rows = rows_of(pattern, 2 + len(columns))
    _check_dtype("coefficients", coefficients, dtype)
    _check_shape("coefficients", coefficients, [len(rows), 2 + len(columns)])
    if guidance_scale is not None:
        _check_dtype("guidance_scale", guidance_scale, dtype)
        _check_shape("guidance_scale", guidance_scale, [])
    return rows


def _check_dtype(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise ValueError(
            f"solver_step: found {name} of dtype {tensor.dtype}, expected {dtype} as the latent has"
        )


def _check_shape(name: str, tensor: torch.Tensor, expected: Sequence[int | torch.SymInt]) -> None:
    # Sizes a request decides are compared when the op runs, not when it is traced.
    fits = tensor.dim() == len(expected) and all(
        found == size
        for found, size in zip(tensor.shape, expected, strict=True)
        if isinstance(found, int) and isinstance(size, int)
    )
    if not fits:
        raise ValueError(
            f"solver_step: found {name} of shape {list(tensor.shape)}, expected {list(expected)}"
        )

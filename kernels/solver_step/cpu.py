"""`solver_step` for a CPU: the operations of the reference, in two buffers instead of many."""

from collections.abc import Sequence

import torch

from optimize.kernels.solver_step.pattern import LEFT_OUT, SCALED, rows_of


def in_place(
    latent: torch.Tensor,
    output: torch.Tensor,
    kept: Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    pattern: str,
    noise: torch.Tensor | None = None,
    guidance_scale: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Adds up in the result; products go through one scratch buffer.

    New memory costs a page fault per 4 KiB, which is most of the reference's time on large latents.
    `add_` with `alpha` would save the scratch, but rounds once where the contract rounds twice.
    """
    prediction = output.to(latent.dtype)
    if guidance_scale is not None:
        unconditional, conditional = prediction.chunk(2)
        change = torch.sub(conditional, unconditional)
        prediction = change.mul_(guidance_scale).add_(unconditional)
    columns = [latent, prediction, *kept] + ([] if noise is None else [noise])
    results = []
    scratch = torch.empty(latent.shape, dtype=latent.dtype, device=latent.device)
    numbers = coefficients.tolist()
    for letters, row in zip(rows_of(pattern, len(columns)), numbers, strict=True):
        result = torch.empty(latent.shape, dtype=latent.dtype, device=latent.device)
        started = False
        for column, letter, number in zip(columns, letters, row, strict=True):
            if letter == LEFT_OUT:
                continue
            if not started:
                _first(result, column, letter, number)
                started = True
            elif letter == SCALED:
                result.add_(torch.mul(column, number, out=scratch))
            else:
                result.add_(column)
        results.append(result)
    return results


def _first(result: torch.Tensor, column: torch.Tensor, letter: str, number: float) -> None:
    if letter == SCALED:
        torch.mul(column, number, out=result)
    else:
        result.copy_(column)

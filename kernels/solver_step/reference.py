"""`solver_step` in plain PyTorch."""

from collections.abc import Sequence

import torch

from optimize.kernels.solver_step.pattern import LEFT_OUT, SCALED, rows_of


def reference(
    latent: torch.Tensor,
    output: torch.Tensor,
    kept: Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    pattern: str,
    noise: torch.Tensor | None = None,
    guidance_scale: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Guides the prediction, then adds up the columns of each row from left to right."""
    prediction = output.to(latent.dtype)
    if guidance_scale is not None:
        unconditional, conditional = prediction.chunk(2)
        prediction = unconditional + guidance_scale * (conditional - unconditional)
    columns = [latent, prediction, *kept] + ([] if noise is None else [noise])
    results = []
    for row, letters in enumerate(rows_of(pattern, len(columns))):
        terms = [
            column * coefficients[row, place] if letter == SCALED else column
            for place, (column, letter) in enumerate(zip(columns, letters, strict=True))
            if letter != LEFT_OUT
        ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        # A row of one '1' is a copy, and no result may be one of the inputs.
        results.append(torch.empty(latent.shape, dtype=latent.dtype, device=latent.device))
        results[-1].copy_(total)
    return results

"""`gather_rows` in plain PyTorch."""

import torch


def reference(x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """Stacks `x[b].index_select(dim - 1, index[b])` over the samples b."""
    samples = x.expand(index.shape[0], *x.shape[1:])
    return torch.stack(
        [sample.index_select(dim - 1, rows) for sample, rows in zip(samples, index, strict=True)]
    )

import torch

from optimize.kernels.gather_rows.schema import _flat


@torch.library.custom_op("optimize::scatter_rows", mutates_args=())
def scatter_rows(
    cache: torch.Tensor, index: torch.Tensor, rows: torch.Tensor, dim: int
) -> torch.Tensor:
    return torch.scatter(cache, dim, _flat(cache, index, dim), rows)


@scatter_rows.register_fake
def _(cache, index, rows, dim):
    return torch.empty_like(cache)

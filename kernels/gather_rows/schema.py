"""`optimize::gather_rows`: each sample takes the rows its own index names."""

import torch


def check_rows(x: torch.Tensor, index: torch.Tensor, dim: int, name: str) -> int:
    """The dimension as a non-negative number.

    Raises:
        ValueError: `dim` is the batch or out of range, or `index` is not [B, M] int64.
    """
    if index.dim() != 2 or index.dtype != torch.int64:
        raise ValueError(
            f"{name}: found index of shape {list(index.shape)} and dtype {index.dtype}, "
            "expected [B, M] int64"
        )
    positive = dim + x.dim() if dim < 0 else dim
    if not 1 <= positive < x.dim():
        raise ValueError(
            f"{name}: found dim {dim} for a tensor of rank {x.dim()}, "
            "expected one after the batch dimension"
        )
    return positive


def flat_rows(shape: torch.Size, index: torch.Tensor, dim: int) -> torch.Tensor:
    """[B * prefix * M] int64: where the rows lie once the dimensions up to `dim` are one.

    Whole rows are then copied at once, several times faster than an index per element.
    """
    prefix = shape[1:dim].numel()
    samples = torch.arange(index.shape[0], device=index.device) * (shape[0] != 1)
    first = samples[:, None] * prefix + torch.arange(prefix, device=index.device)
    return (first[:, :, None] * shape[dim] + index[:, None, :]).reshape(-1)


@torch.library.custom_op("optimize::gather_rows", mutates_args=())
def gather_rows(x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """Takes rows `index[b]` of sample b along `dim`.

    Args:
        x: [B, ..., N, ...] with N at `dim`; a batch of 1 is shared by all samples.
        index: [B, M], int64, each in [0, N).
        dim: any dimension but the first.
    Returns:
        [B, ..., M, ...], contiguous, dtype of `x`.
    Raises:
        ValueError: `dim` is the batch or out of range, or `index` is not [B, M] int64.
    """
    dim = check_rows(x, index, dim, "gather_rows")
    size = list(x.shape)
    size[0], size[dim] = index.shape
    rows = x.reshape(-1, x.shape[dim + 1 :].numel())
    return rows.index_select(0, flat_rows(x.shape, index, dim)).view(size)


@gather_rows.register_fake
def _(x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    dim = check_rows(x, index, dim, "gather_rows")
    size = list(x.shape)
    size[0], size[dim] = index.shape
    return x.new_empty(size)

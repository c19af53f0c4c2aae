"""`optimize::scatter_rows`: each sample's rows replace those its own index names."""

import torch

from optimize.kernels.gather_rows.schema import check_rows, flat_rows


@torch.library.custom_op("optimize::scatter_rows", mutates_args=())
def scatter_rows(
    cache: torch.Tensor, index: torch.Tensor, rows: torch.Tensor, dim: int
) -> torch.Tensor:
    """A copy of `cache` whose rows `index[b]` of sample b along `dim` are `rows[b]`.

    Args:
        cache: [B, ..., N, ...] with N at `dim`.
        index: [B, M], int64, each in [0, N), distinct within a sample.
        rows: [B, ..., M, ...], dtype of `cache`.
        dim: any dimension but the first.
    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    dim = check_rows(cache, index, dim, "scatter_rows")
    _check_sizes(cache, index, rows, dim)
    result = cache.clone(memory_format=torch.contiguous_format)
    width = cache.shape[dim + 1 :].numel()
    flat = flat_rows(cache.shape, index, dim)
    result.view(-1, width).index_copy_(0, flat, rows.reshape(-1, width))
    return result


@scatter_rows.register_fake
def _(cache: torch.Tensor, index: torch.Tensor, rows: torch.Tensor, dim: int) -> torch.Tensor:
    dim = check_rows(cache, index, dim, "scatter_rows")
    _check_sizes(cache, index, rows, dim)
    return cache.new_empty(cache.shape)


def _check_sizes(cache: torch.Tensor, index: torch.Tensor, rows: torch.Tensor, dim: int) -> None:
    expected = list(cache.shape)
    expected[0], expected[dim] = index.shape
    if rows.dtype != cache.dtype or rows.dim() != cache.dim():
        raise ValueError(
            f"scatter_rows: found rows of rank {rows.dim()} and dtype {rows.dtype}, "
            f"expected rank {cache.dim()} and dtype {cache.dtype} as the cache has"
        )
    for found, size in zip(rows.shape, expected, strict=True):
        # Sizes a request decides are compared when the op runs, not when it is traced.
        if isinstance(found, int) and isinstance(size, int) and found != size:
            raise ValueError(
                f"scatter_rows: found rows of shape {list(rows.shape)}, expected {expected} "
                f"for a cache of {list(cache.shape)} and an index of {list(index.shape)}"
            )

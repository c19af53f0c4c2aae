import torch


def _flat(x, index, dim):
    shape = [1] * x.ndim
    shape[0], shape[dim] = index.shape
    size = [index.shape[0], *x.shape[1:]]
    size[dim] = index.shape[1]
    return index.view(shape).expand(size)


@torch.library.custom_op("optimize::gather_rows", mutates_args=())
def gather_rows(x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    x = x.expand(index.shape[0], *x.shape[1:])
    return torch.gather(x, dim, _flat(x, index, dim))


@gather_rows.register_fake
def _(x, index, dim):
    size = [index.shape[0], *x.shape[1:]]
    size[dim] = index.shape[1]
    return x.new_empty(size)

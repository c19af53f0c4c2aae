"""`dynamic_threshold` in plain PyTorch."""

import torch


def reference(x: torch.Tensor, ratio: float, max_value: float) -> torch.Tensor:
    """Takes one sample at a time: `torch.quantile` refuses more than 2**24 elements at once."""
    magnitude = x.abs().flatten(1)
    quantiles = [torch.quantile(sample, ratio) for sample in magnitude]
    bound = torch.stack(quantiles) if quantiles else magnitude.new_empty(0)
    bound = bound.clamp(min=1.0, max=max_value).reshape(-1, *[1] * (x.dim() - 1))
    return (torch.minimum(torch.maximum(x, -bound), bound) / bound).contiguous()

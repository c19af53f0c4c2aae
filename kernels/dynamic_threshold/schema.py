"""`optimize::dynamic_threshold`: clips each sample at its own quantile."""

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from optimize.kernels.dynamic_threshold.reference import reference


@torch.library.custom_op("optimize::dynamic_threshold", mutates_args=())
def dynamic_threshold(x: torch.Tensor, ratio: float, max_value: float) -> torch.Tensor:
    """Clips each sample to [-s, s] and divides by s, where s is a quantile of its magnitudes.

        s = min(max(quantile(|x|, ratio), 1), max_value)        over all dimensions but the first

    Samples whose values lie in [-1, 1] stay as they are. The plain form runs on every device: the
    time goes into sorting, which a kernel of ours would not do faster.

    Args:
        x: [B, ...], float32 or float64: a clean estimate in pixel space, in data units of [-1, 1].
        ratio: the quantile, in [0, 1]; 0.995 is usual.
        max_value: largest s, in (1, inf]. A bound of 1, which is the default of diffusers'
            schedulers, would make this a plain clip to [-1, 1].
    Returns:
        Shape and dtype of `x`, contiguous.
    Raises:
        ValueError: a shape, dtype or number is not as above.
    Source: Saharia et al. (2022), Imagen, section 2.3.
    """
    _check(x, ratio, max_value)
    return reference(x, ratio, max_value)


@dynamic_threshold.register_fake
def _(x: torch.Tensor, ratio: float, max_value: float) -> torch.Tensor:
    _check(x, ratio, max_value)
    return x.new_empty(x.shape)


@register_flop_formula(torch.ops.optimize.dynamic_threshold, get_raw=True)
def _flops(x: torch.Tensor, ratio: float, max_value: float, **_: Any) -> int:
    """Magnitude, two bounds and a quotient per element; the sorting counts as one, as `sort`."""
    return 5 * x.numel()


def _check(x: torch.Tensor, ratio: float, max_value: float) -> None:
    if x.dtype not in (torch.float32, torch.float64) or x.dim() < 2:
        raise ValueError(
            f"dynamic_threshold: found x of rank {x.dim()} and dtype {x.dtype}, "
            "expected [B, ...] float32 or float64"
        )
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"dynamic_threshold: found ratio {ratio}, expected a number in [0, 1]")
    if not max_value > 1.0:
        raise ValueError(
            f"dynamic_threshold: found max_value {max_value}, expected one above 1, or inf for no "
            "bound; a bound of 1 is a plain clip to [-1, 1]"
        )

"""How many samples each prompt gets when samples are filtered before something is fitted to them.

With n_i samples of prompt i, of which a share p_i passes the filter, and gradients of norm G_i, the
mean gradient of the prompt has a variance of about G_i^2 / (n_i p_i). The sum over prompts is
smallest where n_i is proportional to

    w_i = G_i / sqrt(p_i + alpha / p_i^(beta - 1))

with alpha = 0. A positive alpha keeps prompts that almost never pass from taking everything.

Source: Yao et al. (2025), GVM-RAFT, section 3; official code RLHFlow/GVM.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


def sampling_weights(
    gradient_norms: ArrayLike,
    acceptance_rates: ArrayLike,
    *,
    alpha: float = 1e-3,
    beta: float = 2.0,
    cost: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Array:
    """w_i, which the numbers of samples are proportional to; arguments as of `allocate`."""
    terms = _terms(gradient_norms, acceptance_rates, alpha, beta, weights)
    if cost is None:
        return np.sqrt(terms)
    costs = _numbers("cost", cost, len(terms))
    if (costs <= 0).any():
        raise ValueError(f"gvm: found cost {costs.min()}, expected positive numbers")
    return np.sqrt(terms / costs)


def allocate(
    gradient_norms: ArrayLike,
    acceptance_rates: ArrayLike,
    budget: int,
    *,
    alpha: float = 1e-3,
    beta: float = 2.0,
    cost: ArrayLike | None = None,
    floor: int | Sequence[int] = 0,
    cap: int | Sequence[int] | None = None,
    weights: ArrayLike | None = None,
) -> Counts:
    """The number of samples of each prompt, [m] int64, that sum to the budget.

    Rounding is by largest remainder, of equal ones the first prompt's.

    Args:
        gradient_norms: [m], >= 0, of accepted samples of each prompt, in the loss that is fitted.
        acceptance_rates: [m], in [0, 1]. A prompt with 0 gets its floor only.
        budget: samples in total.
        alpha, beta: how much is taken from prompts that rarely pass, >= 0 and >= 1; with beta = 2
            most go to those that pass with probability sqrt(alpha), all else equal.
        cost: [m], > 0, of one sample of each prompt, in any unit. The result is then the best of
            its total cost; the budget still counts samples.
        floor, cap: fewest and most samples of a prompt, for all or for each; None for no cap.
        weights: [m], >= 0, of the prompts in what is fitted; None for equal ones.
    Raises:
        ValueError: a number out of its range, no prompt with a positive weight, or a budget that
            floors and caps do not allow.
    """
    shares = sampling_weights(
        gradient_norms, acceptance_rates, alpha=alpha, beta=beta, cost=cost, weights=weights
    )
    if isinstance(budget, bool) or not isinstance(budget, (int, np.integer)) or budget < 0:
        raise ValueError(f"gvm: found budget {budget!r}, expected a whole number from 0 on")
    if not shares.any():
        raise ValueError(
            "gvm: found no prompt with a positive gradient norm and acceptance rate; draw more "
            "samples in the probe or smooth its rates"
        )
    low = _bounds("floor", floor, len(shares))
    high = _bounds("cap", int(budget) if cap is None else cap, len(shares))
    if (low > high).any():
        raise ValueError(f"gvm: found a floor of {low.max()} above the cap or the budget {budget}")
    most = np.where(shares > 0, high, low)
    if not low.sum() <= budget <= most.sum():
        raise ValueError(
            f"gvm: found budget {budget}, expected {low.sum()} to {most.sum()}, which floors and "
            "caps of prompts with a positive weight allow"
        )
    return _rounded(_filled(shares, low, high, budget), int(budget))


def _filled(shares: Array, low: Counts, high: Counts, budget: int) -> Array:
    """The numbers in [low, high], elsewhere proportional to `shares`, that sum to the budget."""
    positive = shares > 0
    own, least, most = shares[positive], low[positive], high[positive]
    left = budget - low[~positive].sum()
    # The sum grows with the scale, linearly between those where a number reaches a bound.
    scales = np.unique(np.concatenate([least / own, most / own]))
    sums = np.clip(scales[:, None] * own, least, most).sum(1)
    filled = low.astype(np.float64)
    filled[positive] = np.clip(np.interp(left, sums, scales) * own, least, most)
    return filled


def _rounded(numbers: Array, total: int) -> Counts:
    """Whole numbers that sum to a total: rounded down, one more for the largest rests."""
    rounded = np.floor(numbers).astype(np.int64)
    # Rests that differ by rounding only are equal, and go by index.
    rests = np.round(numbers - rounded, 9)
    rounded[np.argsort(-rests, kind="stable")[: total - int(rounded.sum())]] += 1
    return rounded


def objective(
    gradient_norms: ArrayLike,
    acceptance_rates: ArrayLike,
    samples: ArrayLike,
    *,
    alpha: float = 0.0,
    beta: float = 2.0,
    weights: ArrayLike | None = None,
) -> float:
    """The sum of the prompts' variances for numbers of samples [m], which `allocate` makes small.

    Prompts of acceptance rate 0 are left out; infinite if another one has no sample. It takes the
    number of accepted samples for certain, which is optimistic where about one is expected.
    """
    terms = _terms(gradient_norms, acceptance_rates, alpha, beta, weights)
    numbers = _numbers("samples", samples, len(terms))
    with np.errstate(divide="ignore"):
        return float((terms[terms > 0] / numbers[terms > 0]).sum())


def _terms(
    gradient_norms: ArrayLike,
    acceptance_rates: ArrayLike,
    alpha: float,
    beta: float,
    weights: ArrayLike | None,
) -> Array:
    """[m]: a_i, the variance of a prompt's mean with one sample, lowered by alpha."""
    norms = _numbers("gradient_norms", gradient_norms)
    rates = _numbers("acceptance_rates", acceptance_rates, len(norms))
    if (rates > 1).any():
        raise ValueError(f"gvm: found acceptance rate {rates.max()}, expected at most 1")
    if not alpha >= 0 or not beta >= 1:
        raise ValueError(f"gvm: found alpha {alpha} and beta {beta}, expected >= 0 and >= 1")
    if weights is not None:
        norms = norms * _numbers("weights", weights, len(norms))
    possible = rates > 0
    safe = np.where(possible, rates, 1.0)
    return np.where(possible, norms**2 / (safe + alpha / safe ** (beta - 1)), 0.0)


def _numbers(name: str, values: ArrayLike, length: int | None = None) -> Array:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not numbers.size or (length is not None and len(numbers) != length):
        expected = "one number for each prompt" if length is None else f"{length} numbers"
        raise ValueError(f"gvm: found {name} of shape {list(numbers.shape)}, expected {expected}")
    if not np.isfinite(numbers).all() or (numbers < 0).any():
        raise ValueError(f"gvm: found {name} {numbers.tolist()}, expected finite numbers >= 0")
    return numbers


def _bounds(name: str, values: int | Sequence[int], length: int) -> Counts:
    bounds = np.asarray(values)
    if bounds.dtype.kind not in "iu" or bounds.shape not in ((), (length,)) or (bounds < 0).any():
        raise ValueError(
            f"gvm: found {name} {values!r}, expected a whole number >= 0 or {length} of them"
        )
    return np.broadcast_to(bounds, (length,)).astype(np.int64)


@dataclass(frozen=True)
class Probe:
    """What a few samples of each prompt say.

    Attributes:
        acceptance_rates: [m], smoothed, in (0, 1).
        gradient_norms: [m], shrunk.
    """

    acceptance_rates: Array
    gradient_norms: Array


def probe_statistics(
    norms: Sequence[Sequence[float]], drawn: int, *, shrinkage: float = 1.0
) -> Probe:
    """Estimates that a handful of samples does not drive to extremes.

    Rates are (accepted + 1) / (drawn + 2), so no prompt is given up for an unlucky probe. The norm
    of a prompt is the mean over its accepted samples and `shrinkage` more of the prompts' mean
    norm; where none was accepted, the median of the prompts.

    Args:
        norms: of each prompt, the gradient norms of its accepted samples.
        drawn: samples of each prompt.
        shrinkage: in samples, >= 0.
    Raises:
        ValueError: more were accepted than drawn, or none of any prompt.
    """
    accepted = np.array([len(item) for item in norms], dtype=np.float64)
    if not accepted.size or accepted.max() > drawn or not accepted.any():
        raise ValueError(
            f"gvm: found accepted samples {accepted.astype(int).tolist()} of {drawn} drawn, "
            "expected at least one, and at most as many as drawn"
        )
    if not shrinkage >= 0:
        raise ValueError(f"gvm: found shrinkage {shrinkage}, expected a number >= 0")
    means = np.array([np.mean(item) for item in norms if len(item)])
    totals = np.array([np.sum(item) for item in norms])
    known = accepted > 0
    shrunk = (totals + shrinkage * means.mean()) / np.where(known, accepted + shrinkage, 1.0)
    return Probe((accepted + 1) / (drawn + 2), np.where(known, shrunk, np.median(means)))


def head_gradient_norms(
    states: torch.Tensor, logits_minus_onehot: torch.Tensor, *, bias: bool = False
) -> torch.Tensor:
    """The gradient norm of a linear head's summed cross-entropy, of each sample, without autograd.

    The gradient is the sum over positions of a_t h_t^T, so its squared norm is the sum over pairs
    of positions of (a_s a_t)(h_s h_t). For a loss that is a mean over positions, divide by their
    number.

    Args:
        states: [B, S, D], h, what goes into the head.
        logits_minus_onehot: [B, S, V], a, softmax of the logits minus the label; 0 at padding.
        bias: whether the head has one.
    Returns:
        [B] float64.
    """
    a, h = logits_minus_onehot.double(), states.double()
    if a.dim() != 3 or h.dim() != 3 or a.shape[:2] != h.shape[:2]:
        raise ValueError(
            f"gvm: found states {list(h.shape)} and softmax minus labels {list(a.shape)}, expected "
            "[B, S, D] and [B, S, V]"
        )
    products = (a @ a.transpose(1, 2)) * (h @ h.transpose(1, 2) + float(bias))
    return products.sum((1, 2)).clamp(min=0.0).sqrt()


def sample_weights(
    prompts: ArrayLike,
    accepted: ArrayLike,
    count: int,
    *,
    weights: ArrayLike | None = None,
    acceptance_rates: ArrayLike | None = None,
) -> Array:
    """What to multiply the gradient of each sample with, so that the sum is the prompts' mean.

    A plain mean over accepted samples would favour the prompts that got many; here each accepted
    sample of prompt i counts v_i / (accepted samples of i).

    Args:
        prompts: [n] int, the prompt of each sample, in [0, count).
        accepted: [n] bool.
        count: m, the prompts.
        weights: [m], v; None for 1 / m each.
        acceptance_rates: [m], p. Given these, prompts that now and then have no accepted sample
            count for more when they have: by 1 / (1 - (1 - p)^n). That removes the bias.
    Returns:
        [n] float64; 0 where not accepted.
    """
    own, passed = np.asarray(prompts, dtype=np.int64), np.asarray(accepted, dtype=bool)
    if own.ndim != 1 or own.shape != passed.shape or ((own < 0) | (own >= count)).any():
        raise ValueError(
            f"gvm: found prompts {list(own.shape)} and accepted {list(passed.shape)}, expected [n] "
            f"each, prompts in [0, {count})"
        )
    share = np.full(count, 1 / count) if weights is None else _numbers("weights", weights, count)
    if acceptance_rates is not None:
        rates = _numbers("acceptance_rates", acceptance_rates, count)
        seen = 1 - (1 - rates) ** np.bincount(own, minlength=count)
        share = share / np.where(seen > 0, seen, 1.0)
    counts = np.bincount(own[passed], minlength=count)
    return np.where(passed, share[own] / np.maximum(counts, 1)[own], 0.0)


def expected_misses(acceptance_rates: ArrayLike, samples: ArrayLike) -> float:
    """How many prompts will have no accepted sample, on average: the sum of (1 - p_i)^n_i."""
    rates = _numbers("acceptance_rates", acceptance_rates)
    return float(((1 - rates) ** _numbers("samples", samples, len(rates))).sum())

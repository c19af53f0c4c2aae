"""Logits → the probabilities that tokens are drawn with, and draws from them.

Draft and target need the same answer to "with what probability is this token drawn?", so what
temperature, top-k and top-p leave is a distribution here, not only a way to draw. All in float64,
batch first, of ops that every engine has; `optimize/ir/recording.py` puts them into graphs.
"""

import torch


def distribution(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor | None = None,
    top_k: int | None = None,
) -> torch.Tensor:
    """What tokens are drawn with.

    The same tokens are kept as in the choice of a token by `optimize/capture/decode_steps.py`:
    probabilities that `top_p` adds up are those of all tokens, also where `top_k` is given; of
    equal logits the first ones are kept.

    Args:
        logits: [B, ..., V].
        temperature: [B] or a scalar, > 0.
        top_p: [B] or a scalar, in (0, 1]; None keeps all, which saves sorting them.
        top_k: at least 1; None keeps all.
    Returns:
        [B, ..., V] float64, summing to 1.
    """
    scores = logits.double() / _per_sample(temperature, logits)
    probabilities = torch.softmax(scores, -1)
    if top_p is None and top_k is None:
        return probabilities
    count = logits.shape[-1] if top_k is None else min(top_k, logits.shape[-1])
    if top_k is None:
        ordered, order = torch.sort(scores, dim=-1, descending=True, stable=True)
    else:
        ordered, order = torch.topk(scores, count, -1)
    if top_p is None:
        smallest, number = ordered[..., -1:], torch.full_like(order[..., -1:], count)
    else:
        sorted_probabilities = probabilities.gather(-1, order)
        before = torch.cumsum(sorted_probabilities, -1) - sorted_probabilities
        number = (before < _per_sample(top_p, logits)).long().sum(-1, keepdim=True)
        smallest = ordered.gather(-1, number - 1)
    above = scores > smallest
    equal = scores == smallest
    room = number - above.long().sum(-1, keepdim=True)
    kept = above | (equal & (torch.cumsum(equal.long(), -1) <= room))
    left = torch.where(kept, probabilities, 0.0)
    return left / left.sum(-1, keepdim=True)


def _per_sample(value: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """A scalar or [B], as [] or [B, 1, ..., 1] float64."""
    value = value.double()
    for _ in range(logits.dim() - 1 if value.dim() else 0):
        value = value.unsqueeze(-1)
    return value


def pick(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draws by the inverse of the cumulative weights; never a token of weight 0.

    Args:
        weights: [B, ..., V] float64, >= 0, not all 0.
        uniform: [B, ...] float64, in [0, 1).
    Returns:
        [B, ...] int64.
    """
    return _first_above(*_totals(weights), uniform)


def _totals(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cumulative weights [B, ..., V] with 0 for tokens of weight 0, and the largest, [B, ...]."""
    # So the end is that of a possible token, also where sums in parallel are not monotone.
    totals = torch.where(weights > 0, torch.cumsum(weights, -1), 0.0)
    return totals, totals.amax(-1)


def _first_above(totals: torch.Tensor, end: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    reached = totals > (uniform * end).unsqueeze(-1)
    return reached.to(torch.float32).argmax(-1)


def draws(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Independent draws, with replacement.

    Args:
        probabilities: [B, ..., V] float64.
        uniforms: [B, k, ...] float64, in [0, 1).
    Returns:
        Tokens [B, k, ...] int64.
    """
    totals, end = _totals(probabilities)
    tokens = [_first_above(totals, end, uniform) for uniform in uniforms.unbind(1)]
    return torch.stack(tokens, 1)


def draws_without_replacement(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draws one after the other, each from what the earlier ones left.

    Args:
        probabilities: [B, V] float64; where fewer than k are above 0, the last draws repeat.
        uniforms: [B, k] float64, in [0, 1).
    Returns:
        [B, k] int64.
    """
    tokens = []
    for uniform in uniforms.unbind(1):
        tokens.append(pick(probabilities, uniform))
        probabilities = without(probabilities, tokens[-1])
    return torch.stack(tokens, 1)


def without(probabilities: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """[B, V] with the token [B] taken out and the rest scaled to 1; as it was if that is all."""
    numbers = torch.arange(probabilities.shape[-1], device=probabilities.device)
    rest = torch.where(numbers == token[:, None], 0.0, probabilities)
    return normalised(rest, probabilities)


def normalised(weights: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """Weights [B, V] >= 0 scaled to 1, or another distribution where all are 0."""
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / torch.where(total > 0, total, 1.0), otherwise)

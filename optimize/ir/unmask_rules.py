"""The rules by which masks are filled in, as plain functions that are recorded into graphs.

Texts are int64 [B, G], masks included; logits [B, R, V]. What is drawn is drawn in float64 from
uniform numbers that come from outside, one for a token: the inverse of the cumulative probability
has the law of a Gumbel maximum and needs no number for every token of the vocabulary.

Source: Zheng et al. (2025), on first hitting and on what float32 noise does; Nie et al. (2025),
LLaDA; Li et al. (2025), Prophet; Xu et al. (2025), EDLM.
"""

import torch

from optimize.ir.decode import Sampling
from optimize.ir.distribution import distribution, pick
from optimize.kernels.gather_rows import gather_rows

LEAST = -1e30
"""Less than any score."""


def text_logits(logits: torch.Tensor, mask_id: int, vocabulary: int) -> torch.Tensor:
    """Logits of the tokens that text may have, [B, R, V]; the mask's becomes -inf."""
    logits = logits[..., :vocabulary]
    if mask_id >= vocabulary:
        return logits
    is_mask = torch.arange(vocabulary, device=logits.device) == mask_id
    return logits.masked_fill(is_mask, float("-inf"))


def drawn(
    logits: torch.Tensor,
    sampling: Sampling | None,
    uniforms: torch.Tensor | None = None,
    temperature: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
) -> torch.Tensor:
    """A token for every row: the likeliest, or one drawn with `uniforms` [B, R] in (0, 1)."""
    if sampling is None:
        return logits.argmax(-1)
    assert uniforms is not None and temperature is not None
    return pick(probabilities_of(logits, sampling, temperature, top_p), uniforms)


def probabilities_of(
    logits: torch.Tensor,
    sampling: Sampling,
    temperature: torch.Tensor,
    top_p: torch.Tensor | None = None,
) -> torch.Tensor:
    """What tokens are drawn with, [B, R, V] float64.

    Without top-k and top-p from a softmax in the precision of the logits, whose relative error is
    theirs; what must not be rounded is the noise and the cumulative sum.
    """
    if top_p is None and sampling.top_k is None:
        return torch.softmax(logits / temperature.to(logits.dtype), -1).double()
    return distribution(logits, temperature, top_p, sampling.top_k)


def certainty(kind: str, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """How sure a model is of the tokens [B, R] that were taken, [B, R], more for surer."""
    scores = logits.float()
    if kind == "low_confidence":
        return torch.softmax(scores, -1).gather(-1, tokens[..., None])[..., 0]
    probabilities = torch.softmax(scores, -1)
    if kind == "margin":
        best = torch.topk(probabilities, 2, -1).values
        return best[..., 0] - best[..., 1]
    return (probabilities * torch.log(probabilities + 1e-10)).sum(-1)


def largest(scores: torch.Tensor, among: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """[B, G] bool: the `count` [B] largest of scores [B, G] among some; of equal ones the first."""
    scores = torch.where(among, scores, LEAST)
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    rank = torch.sort(order, dim=-1).indices
    return among & (rank < count[:, None])


def of_block(text: torch.Tensor, mask_id: int, block: torch.Tensor, width: int) -> torch.Tensor:
    """[B, G] bool: the masks of one block of a text; `block` is its number, a scalar."""
    numbers = torch.arange(text.shape[1], device=text.device) // width
    return (text == mask_id) & (numbers == block)


def share_of_masks(masks: torch.Tensor, place: torch.Tensor, calls: int) -> torch.Tensor:
    """How many of the masks [B] of a block a call fills in, the `place`-th of so many; [B]."""
    return masks // calls + (place < masks % calls).long()


def random_places(
    masked: torch.Tensor, keys: torch.Tensor, count: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks drawn uniformly without replacement.

    Args:
        masked: [B, G] bool.
        keys: [B, G] in (0, 1).
        count: scalar, how many.
        most: what it is at most.
    Returns:
        Places [B, most] int64 and whether each counts, [B, most] bool.
    """
    found = torch.topk(torch.where(masked, keys, -1.0), most, -1)
    numbers = torch.arange(most, device=masked.device)
    return found.indices, (found.values >= 0) & (numbers < count)


def hitting_times(
    tau: torch.Tensor, masks: torch.Tensor, uniforms: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """When the next masks are revealed, as masked shares of the linear schedule.

    Args:
        tau: [B] float64, the time so far, 1 at the start.
        masks: [B] int64, how many there are.
        uniforms: [B, g] float64 in (0, 1).
        counts: [B, g] bool, which reveals there are.
    Returns:
        [B, g] float64, decreasing: of n masks the next one is revealed at tau * u^(1/n).
    """
    before = torch.arange(uniforms.shape[1], device=tau.device)
    left = torch.clamp(masks[:, None] - before, min=1)
    shares = torch.where(counts, torch.log(uniforms) / left, 0.0)
    return tau[:, None] * torch.exp(torch.cumsum(shares, -1))


def extrapolated(
    logits: torch.Tensor,
    previous: torch.Tensor,
    times: torch.Tensor,
    tau: torch.Tensor,
    previous_tau: torch.Tensor,
) -> torch.Tensor:
    """Log-probabilities carried on linearly in time from the last two calls. Experimental.

    Args:
        logits, previous: [B, g, V] of this call and of the one before.
        times: [B, g], when the tokens are revealed.
        tau, previous_tau: [B], when the calls were made; equal ones carry nothing on.
    """
    step = tau - previous_tau
    known = step < 0
    weight = torch.where(known, 1 / torch.where(known, step, 1.0), 0.0)
    # Not more than the last change once more.
    share = torch.clamp((times - tau[:, None]) * weight[:, None], min=0.0, max=1.0)
    now, before = (torch.log_softmax(item.double(), -1) for item in (logits, previous))
    change = torch.where((now > LEAST) & (before > LEAST), now - before, 0.0)
    return now + share[..., None] * change


def put(
    text: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor, which: torch.Tensor
) -> torch.Tensor:
    """The text with tokens [B, g] at places [B, g] that count."""
    kept = text.gather(1, places)
    return text.scatter(1, places, torch.where(which, tokens, kept))


def is_certain(
    logits: torch.Tensor,
    masked: torch.Tensor,
    region: torch.Tensor,
    threshold: torch.Tensor,
    masked_only: bool,
) -> torch.Tensor:
    """[B] bool: whether the mean gap between the two largest logits reaches a threshold.

    Args:
        logits: [B, G, V].
        masked: [B, G] bool.
        region: [G] bool, the answer.
        threshold: scalar, in logits.
        masked_only: leave out what is filled in; of nothing the mean is certain.
    """
    best = torch.topk(logits.float(), 2, -1).values
    gaps = best[..., 0] - best[..., 1]
    counted = (region & masked) if masked_only else region.expand(masked.shape)
    number = counted.float().sum(-1)
    mean = torch.where(counted, gaps, 0.0).sum(-1) / torch.clamp(number, min=1.0)
    return (mean >= threshold) | (number == 0)


def resampled(
    candidates: torch.Tensor, energies: torch.Tensor, uniforms: torch.Tensor, temperature: float
) -> torch.Tensor:
    """One of k texts, drawn with weights exp(-energy / temperature).

    Args:
        candidates: [B * k, G], those of a sample one after another.
        energies: [B * k].
        uniforms: [B] float64.
    Returns:
        [B, G].
    """
    batch = uniforms.shape[0]
    weights = torch.softmax(-energies.double().reshape(batch, -1) / temperature, -1)
    chosen = pick(weights, uniforms)
    texts = candidates.reshape(batch, -1, candidates.shape[-1])
    row: torch.Tensor = gather_rows(texts, chosen[:, None], 1)
    return row[:, 0]


def fragment(
    text: torch.Tensor, mask_id: int, width: int, sent: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What has become final: whole blocks before the first mask, behind those sent already.

    Args:
        sent: [B], how many tokens were.
    Returns:
        [B, G] whose first tokens count; how many, [B]; sent in all, [B].
    """
    length = text.shape[1]
    numbers = torch.arange(length, device=text.device)
    first = torch.where(text == mask_id, numbers, length).amin(-1)
    final = first // width * width
    places = torch.clamp(sent[:, None] + numbers, max=length - 1)
    return text.gather(1, places), final - sent, final

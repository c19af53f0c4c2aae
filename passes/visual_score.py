"""How much the last token of a prompt wants each token of the image, and which tokens are kept.

The score is attention of one row at one layer: the query of the last real text token against the
keys of the image. Rotary positions make it prefer image tokens that stand near the text, which are
the bottom rows of the picture; without them the score says what the token looks for, wherever it
is.

These are functions of tensors; `prune_visual_tokens` records them into its graphs.
"""

from dataclasses import dataclass

import torch

from optimize.kernels.gather_rows import gather_rows

ALWAYS = 4.0
"""Added to the score of a token that is kept in any case; attention is at most 1."""

HIDDEN = -1e30


@dataclass(frozen=True)
class Rows:
    """Where the image stands in the sequence, before some layer.

    Attributes:
        offset: rows before it, the same for all samples.
        count: its rows, of the sample that has most.
        used: [B] int64, rows of each sample that are no padding.
        own: [B] int64, the image rows of each sample, which follow the offset.
    """

    offset: int
    count: int
    used: torch.Tensor
    own: torch.Tensor


def image_attention(
    query: torch.Tensor, key: torch.Tensor, rows: Rows, scale: float | None, image_only: bool
) -> torch.Tensor:
    """Attention of the last text token to each image token, averaged over heads.

    Args:
        query: [B, N, S, D].
        key: [B, G, S, D], G a divisor of N.
        rows: of the image.
        scale: of the scores; None for 1 / sqrt(D).
        image_only: normalise over the image (FEATHER) or over all keys (FastV).
    Returns:
        [B, count], float32 or float64, in [0, 1]; 0 for rows that a sample does not have.
    """
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    last = gather_rows(query, (rows.used - 1)[:, None], 2)
    grouped = last.reshape(batch, groups, heads // groups, width)
    image = slice(rows.offset, rows.offset + rows.count)
    if image_only:
        key = key[:, :, image]
    scores = grouped @ key.transpose(2, 3) * (width**-0.5 if scale is None else scale)
    if scores.dtype != torch.float64:
        scores = scores.float()
    numbers = torch.arange(rows.count if image_only else length, device=query.device)
    ends = rows.own if image_only else rows.used
    scores = torch.where((numbers < ends[:, None])[:, None, None], scores, HIDDEN)
    weights = torch.softmax(scores, -1).mean((1, 2))
    return weights if image_only else weights[:, image]


@dataclass(frozen=True)
class Amount:
    """How many image tokens are kept.

    Attributes:
        most: of the sample that keeps most.
        best: how many of the best scores are kept; a number, or a share of the tokens that a
            sample has, at least one.
        grid: (columns of the image, stride): every `stride`-th token of every `stride`-th row is
            kept whatever its score; None for none.
        exact: every sample keeps `most`, those of the grid among them; else the grid comes on top
            of the best.
    """

    most: int
    best: int | float
    grid: tuple[int, int] | None = None
    exact: bool = False


def kept_tokens(scores: torch.Tensor, rows: Rows, amount: Amount) -> torch.Tensor:
    """[B, n] bool: the tokens that are kept, from scores [B, n] in [0, 1]."""
    numbers = torch.arange(rows.count, device=scores.device)
    marked = torch.zeros_like(numbers, dtype=torch.bool)
    if amount.grid is not None:
        marked = on_grid(numbers, *amount.grid)
    scores = torch.where(numbers < rows.own[:, None], scores, -1.0)
    if amount.exact:
        scores = scores + ALWAYS * marked.to(scores.dtype)
    order = torch.sort(scores, dim=1, descending=True, stable=True)[1]
    rank = torch.sort(order, dim=1, stable=True)[1]
    if amount.exact:
        return rank < amount.most
    if isinstance(amount.best, float):
        best = torch.clamp((rows.own * amount.best).long(), min=1)
        return rank < best[:, None]
    # All tokens are there where a grid is: only the first stage has one.
    return (rank < amount.best) | marked


def on_grid(numbers: torch.Tensor, columns: int, stride: int) -> torch.Tensor:
    """Whether tokens stand in every `stride`-th row and column, by their raster numbers."""
    return (numbers // columns % stride == 0) & (numbers % columns % stride == 0)


def kept_rows(
    kept: torch.Tensor, rows: Rows, amount: Amount, length: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rows of a sequence of `length` rows that go on.

    Args:
        kept: [B, n] bool.
    Returns:
        index: [B, length - n + most] int64: rows before the image, kept tokens in raster order,
            text. Rows at the end, where a sample keeps fewer than `most`, are padding.
        chosen: [B, most] int64, the kept tokens; -1 behind the last one of a sample.
        count: [B] int64, how many there are.
    """
    count = kept.long().sum(1)
    order = torch.sort((~kept).long(), dim=1, stable=True)[1][:, : amount.most]
    total = length - rows.count + amount.most
    row = torch.arange(total, device=kept.device).expand(kept.shape[0], total)
    place = row - rows.offset
    image = torch.gather(order, 1, place.clamp(0, amount.most - 1)) + rows.offset
    text = (row - count[:, None] + rows.own[:, None]).clamp(max=length - 1)
    index = torch.where(place < count[:, None], image, text)
    index = torch.where(place < 0, row, index)
    slots = torch.arange(amount.most, device=kept.device)
    chosen = torch.where(slots < count[:, None], order, -1)
    return index, chosen, count

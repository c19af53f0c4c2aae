"""Draft rows of Chimera at every position of a text at once, for fitting and measuring.

Row (i, j) is what a draft computes at depth i when the tokens up to j are verified and token j + 1
is certain: it stands for token j + 1 + i, sees the states h_0 … h_j, the rows (d, j) of the depths
d < i of its own chain and itself, and scores token j + 2 + i.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch

from optimize.passes.drafts.chimera import Chimera, token_windows

Feeding = Literal["text", "own"]
"""The tokens of a chain behind its root: those of the text, or the draft's own choices."""


def draft_rows(
    chimera: Chimera,
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    feeding: Feeding = "text",
    detach_earlier: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits [B, R, V] and o [B, R, H] of the rows of each depth i, with j = 0 … R - 1.

    R is S - 1 - i, so that every row stands for a token of the text. Fed with its own choices, a
    row with i > 0 stands for the token that head i - 1 finds likeliest, at the same position.

    Args:
        tokens: [B, S] int64.
        hidden: [B, S, H] the target's states.
        feeding: the tokens of the chains.
        detach_earlier: no gradients through the keys and values of earlier depths.
    """
    batch, length = tokens.shape
    every = torch.arange(length).expand(batch, length)
    keys, values = chimera.context(hidden, every)
    chain: list[tuple[torch.Tensor, torch.Tensor]] = []
    windows = token_windows(tokens)
    trigrams = chimera.trigram(chimera.embed(windows))
    projected = chimera.project(trigrams, every)
    chosen = torch.empty(0)
    for depth in range(min(chimera.config.heads, length - 1)):
        count, first = length - 1 - depth, 1 + depth
        if feeding == "text" or depth == 0:
            rows = trigrams[:, first:]
            query, key, value = (item[:, :, first:] for item in projected)
        else:
            windows = torch.cat([windows[:, :count, 1:], chosen[:, :count, None]], -1)
            rows = chimera.trigram(chimera.embed(windows))
            query, key, value = chimera.project(rows, every[:, first:])
        if depth == 0:
            windows = windows[:, first:]
        if detach_earlier:
            chain = [(old.detach(), seen.detach()) for old, seen in chain]
        chain = [(old[:, :, :count], seen[:, :, :count]) for old, seen in chain]
        chain.append((key, value))
        attended = _attended(query, keys[:, :, :count], values[:, :, :count], chain)
        fused = chimera.finish(rows, attended)
        logits = chimera.logits(hidden[:, :count], fused, depth)
        if feeding == "own":
            chosen = logits.detach().argmax(-1)
        yield logits, fused


def _attended(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    chain: list[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """[B, N, R, D]: row j attends to the states up to j and to row j of every link of the chain.

    Args:
        query: [B, N, R, D].
        keys, values: [B, N, R, D] of the verified states.
        chain: keys and values [B, N, R, D] of the depths so far, the last one the rows themselves.
    """
    count = query.shape[2]
    query = query / math.sqrt(query.shape[-1])
    later = torch.ones(count, count, dtype=torch.bool).triu(1)
    scores = (query @ keys.transpose(-1, -2)).masked_fill(later, -math.inf)
    own = torch.stack([(query * key).sum(-1) for key, _ in chain], -1)
    shares = torch.softmax(torch.cat([scores, own.to(scores.dtype)], -1), -1)
    shares = shares.to(values.dtype)
    result = shares[..., :count] @ values
    for link, (_, value) in enumerate(chain):
        result = result + shares[..., count + link, None] * value
    return result

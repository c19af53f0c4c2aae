"""Verification of independent drafts: k-SEQ, and with one draft the classical rule.

At each level the k drafts that agree with the accepted tokens are tried in turn; token x is
accepted with probability min(1, q(x) / (rho p(x))), p the draft's and q the target's. If none is,
the token comes from max(0, q - rho p). rho is the smallest number that leaves no x with more
than q(x); with k = 1 it is 1, and the rule that of Leviathan and of Chen.

Source: Sun et al. (2023), SpecTr, algorithms 2 and 3; Leviathan et al. (2023), algorithm 1.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from optimize.ir.distribution import normalised, pick
from optimize.ir.draft_tree import DraftTree
from optimize.passes.verifiers.verifier_base import (
    Rows,
    Verdict,
    Verifier,
    only_chains,
    probability,
)

CANDIDATES, ROUNDS = 512, 6
"""Of the search for rho: each round leaves one 511th of the interval."""

ROUNDING = 1e-15
"""What sums of probabilities may lack; where draft and target agree, rho would rise without it."""


@dataclass(frozen=True)
class Exact(Verifier):
    """One draft, token by token; the text has the target's distribution."""

    name: ClassVar[str] = "exact"

    def accepts(self, tree: DraftTree) -> str | None:
        return only_chains(tree, self.name)

    def verify(
        self,
        tree: DraftTree,
        tokens: torch.Tensor,
        target: Rows,
        draft: Rows | None = None,
        uniforms: torch.Tensor | None = None,
        scores: torch.Tensor | None = None,
    ) -> Verdict:
        assert draft is not None and uniforms is not None
        return verify_independent(tree, tokens, target, draft, uniforms)


@dataclass(frozen=True)
class KSeq(Verifier):
    """Several drafts drawn independently of each other; the text has the target's distribution."""

    name: ClassVar[str] = "kseq"

    def accepts(self, tree: DraftTree) -> str | None:
        if tree.drafts is not None:
            return None
        return (
            f"kseq: found a tree of {tree.size - 1} tokens that branches below its root, expected "
            "independent drafts; use verifier recursive"
        )

    def verify(
        self,
        tree: DraftTree,
        tokens: torch.Tensor,
        target: Rows,
        draft: Rows | None = None,
        uniforms: torch.Tensor | None = None,
        scores: torch.Tensor | None = None,
    ) -> Verdict:
        assert draft is not None and uniforms is not None
        return verify_independent(tree, tokens, target, draft, uniforms)


def verify_independent(
    tree: DraftTree,
    tokens: torch.Tensor,
    target: Rows,
    draft: Rows,
    uniforms: torch.Tensor,
    always: torch.Tensor | None = None,
) -> Verdict:
    """The verdict on drafts made by `DraftTree.independent`.

    Args:
        always: [B, S] bool, tokens that are accepted whatever the target says.
    """
    drafts = tree.drafts
    assert drafts is not None
    numbers = torch.arange(drafts, device=tokens.device)
    zero = torch.zeros_like(tokens[:, 0])
    live = (numbers >= 0).expand(tokens.shape[0], drafts)
    going = zero == 0
    survivor, accepted, at = zero, zero, zero
    rho = zero.double()
    for level in range(tree.depth):
        rows = slice(1 + level * drafts, 1 + (level + 1) * drafts)
        drafted = tokens[:, rows]
        p, q = draft(at), target(at)
        # Where the walk has ended nothing is live; one draft keeps the bounds of rho in order.
        count = live.long().sum(1).clamp(min=1)
        tried = smallest_rho(p, q, count) if drafts > 1 else torch.ones_like(rho)
        rho = torch.where(going, tried, rho)
        bound = uniforms[:, rows.start - 1 : rows.stop - 1] * (
            rho[:, None] * probability(p, drafted)
        )
        kept = bound < probability(q, drafted)
        if always is not None:
            kept = kept | always[:, rows]
        kept = kept & live
        found = kept.long().sum(1) > 0
        first = first_of(kept)
        live = live & found[:, None] & (drafted == drafted.gather(1, first[:, None]))
        going = going & found
        # Any live draft stands for all: they agree up to here.
        survivor = torch.where(going, first, survivor)
        accepted = accepted + going.long()
        at = torch.where(going, 1 + level * drafts + survivor, at)
    # Behind the last level nothing was drafted: the whole of q is left.
    rho = torch.where(going, 0.0, rho)
    last_draft = draft(torch.where(going, 0, at))
    token = pick(residual(last_draft, target(at), rho), uniforms[:, -1])
    levels = torch.arange(tree.depth, device=tokens.device)
    path = 1 + levels * drafts + survivor[:, None]
    return Verdict(path, accepted, token)


def first_of(marked: torch.Tensor) -> torch.Tensor:
    """[B, K] bool → [B] int64: the first that is marked; 0 if none is."""
    return marked.to(torch.float32).argmax(1)


def residual(p: torch.Tensor, q: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
    """What a token is drawn from when no draft was accepted: max(0, q - rho p), scaled to 1.

    Args:
        p, q: [B, V], draft and target.
        rho: [B].
    Returns:
        [B, V]; q where nothing is left, which only rounding can bring about.
    """
    return normalised((q - rho[:, None] * p).clamp(min=0.0), q)


def smallest_rho(p: torch.Tensor, q: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The smallest valid rho for `count` drafts, from above.

    rho is valid where rho beta(rho) >= 1 - (1 - beta(rho))^count, beta(rho) the probability that
    one draft is accepted. The difference grows with rho and is not negative at rho = count. The
    left side, the sum of min(rho p, q), is straight between the ratios q / p: a sort finds the
    stretch with the root, and a few rounds of many candidates the root itself.

    Args:
        p, q: [B, V] float64, draft and target.
        count: [B] int64, >= 1.
    Returns:
        [B] float64, in [1, count].
    """
    drafts = count.double()[:, None]
    ratio, order = torch.sort(torch.where(p > 0, q / torch.where(p > 0, p, 1.0), math.inf), -1)
    zero = torch.zeros_like(drafts)
    below = torch.cat([zero, torch.cumsum(q.gather(1, order), 1)], 1)
    above = (1 - torch.cat([zero, torch.cumsum(p.gather(1, order), 1)], 1)).clamp(min=0.0)
    at = torch.minimum(ratio.clamp(min=1.0), drafts)
    passed = (ratio <= 1) | ~_is_valid(at, below[:, 1:], above[:, 1:], drafts)
    place = passed.long().sum(1, keepdim=True)
    ends = torch.cat([zero, ratio, zero + math.inf], 1)
    low = torch.minimum(ends.gather(1, place).clamp(min=1.0), drafts)
    high = torch.maximum(torch.minimum(ends.gather(1, place + 1), drafts), low)
    below, above = below.gather(1, place), above.gather(1, place)
    steps = torch.arange(CANDIDATES, device=p.device).double() / (CANDIDATES - 1)
    for _ in range(ROUNDS):
        tried = low + (high - low) * steps
        # The last one is valid whatever rounding says.
        wrong = (~_is_valid(tried, below, above, drafts)).long().sum(1, keepdim=True)
        first = wrong.clamp(max=CANDIDATES - 1)
        low, high = tried.gather(1, (first - 1).clamp(min=0)), tried.gather(1, first)
    return high[:, 0]


def _is_valid(
    rho: torch.Tensor, below: torch.Tensor, above: torch.Tensor, drafts: torch.Tensor
) -> torch.Tensor:
    """Whether numbers rho [B, n] leave no token too much.

    Args:
        below: [B, n] of q where q / p is at most rho.
        above: [B, n] of p elsewhere.
        drafts: [B, 1] how many there are.
    """
    mass = below + rho * above
    rejected = (1 - mass / rho).clamp(min=0.0)
    return mass + ROUNDING >= 1 - torch.pow(rejected, drafts)

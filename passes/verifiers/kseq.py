"""Verification of independent drafts: k-SEQ, and with one draft the classical rule.

At each level the k drafts that agree with the accepted tokens are tried in turn; token x is
accepted with probability min(1, q(x) / (rho p(x))), p the draft's and q the target's. If none is,
the token comes from max(0, q - rho p). rho is the smallest number that leaves no x with more
than q(x); with k = 1 it is 1, and the rule that of Leviathan and of Chen.

Source: Sun et al. (2023), SpecTr, algorithms 2 and 3; Leviathan et al. (2023), algorithm 1.
"""

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

HALVINGS = 50
"""Of the interval that holds rho; its length is then below 1e-14 for up to 10 drafts."""


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
    """The smallest valid rho for `count` drafts, as the upper end of a bisection.

    rho is valid where rho beta(rho) >= 1 - (1 - beta(rho))^count, beta(rho) the probability that
    one draft is accepted. The difference grows with rho and is not negative at rho = count.

    Args:
        p, q: [B, V] float64, draft and target.
        count: [B] int64, >= 1.
    Returns:
        [B] float64, in [1, count].
    """
    exponent = count.double()
    low, high = torch.ones_like(exponent), exponent
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        mass = torch.minimum(middle[:, None] * p, q).sum(1)
        rejected = (1 - mass / middle).clamp(min=0.0)
        valid = mass >= 1 - torch.pow(rejected, exponent)
        high = torch.where(valid, middle, high)
        low = torch.where(valid, low, middle)
    return high

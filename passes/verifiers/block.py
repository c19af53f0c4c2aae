"""Block verification: one draft, its tokens judged together instead of one by one.

    P_0 = 1,   P_i = min(1, P_(i-1) q(x_i) / p(x_i))
    h_i = R_i / (R_i + 1 - P_i),   R_i = sum over x of max(0, P_i q(x) - p(x)),   h_g = P_g

All i are tried, each with its own uniform; the largest that is accepted is the end. A likely token
makes up for an unlikely one before it, so never fewer tokens are accepted on average than by
`exact`, and the text has the target's distribution all the same.

Source: Sun et al. (2025), Block Verification Accelerates Speculative Decoding, algorithm 2.
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


@dataclass(frozen=True)
class Block(Verifier):
    """One draft as a whole; the text has the target's distribution."""

    name: ClassVar[str] = "block"

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
        row = torch.zeros_like(tokens[:, 0])
        accepted = row
        joint = torch.ones_like(uniforms[:, 0])
        at_end = joint
        p, q = draft(row), target(row)
        for length in range(1, tree.depth + 1):
            token = tokens[:, length : length + 1]
            joint = (joint * ratio(probability(q, token), probability(p, token))[:, 0]).clamp(max=1)
            uniform = uniforms[:, length - 1]
            if length < tree.depth:
                p, q = draft(row + length), target(row + length)
                surplus = surplus_of(p, q, joint).sum(1)
                # Without a division, which 0 / 0 could be where draft and target agree.
                ends = uniform * (surplus + 1 - joint) < surplus
            else:
                ends = uniform < joint
            accepted = torch.where(ends, length, accepted)
            at_end = torch.where(ends, joint, at_end)
        whole = accepted == tree.depth
        q = target(accepted)
        left = surplus_of(draft(torch.where(whole, 0, accepted)), q, at_end)
        weights = torch.where(whole[:, None], q, normalised(left, q))
        path = row[:, None] + 1 + torch.arange(tree.depth, device=tokens.device)
        return Verdict(path, accepted, pick(weights, uniforms[:, -1]))


def surplus_of(p: torch.Tensor, q: torch.Tensor, joint: torch.Tensor) -> torch.Tensor:
    """max(0, joint q - p), [B, V], of draft p, target q [B, V] and joint probabilities [B]."""
    return (joint[:, None] * q - p).clamp(min=0.0)


def ratio(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """By how much likelier the target finds a token; 0 where p is 0, as no drafted token has."""
    possible = p > 0
    return torch.where(possible, q / torch.where(possible, p, 1.0), 0.0)

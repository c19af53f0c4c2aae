"""Recursive rejection: the children of a row are tried in turn, for trees of any shape.

Child x is accepted with probability min(1, q(x) / p(x)). If it is rejected, the target of the next
one is max(0, q - p), scaled to 1; where children are drawn without replacement, x leaves p as well.
What is left of q after the last child is what the token that follows is drawn from.

Source: Miao et al. (2023), SpecInfer, algorithm 2; without replacement, Chen et al. (2024),
Sequoia, algorithm 2.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from optimize.ir.distribution import normalised, pick, without
from optimize.ir.draft_tree import DraftTree
from optimize.passes.verifiers.verifier_base import (
    Rows,
    Siblings,
    Verdict,
    Verifier,
    path_to,
    probability,
    table,
)


@dataclass(frozen=True)
class Recursive(Verifier):
    """Any tree; the text has the target's distribution.

    Args:
        without_replacement: how the children of a row were drawn: each from what the earlier ones
            left of the draft's distribution, or independently of each other.
    """

    without_replacement: bool = False

    name: ClassVar[str] = "recursive"

    @property
    def siblings(self) -> Siblings:
        return "without_replacement" if self.without_replacement else "with_replacement"

    def accepts(self, tree: DraftTree) -> str | None:
        return None

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
        at = torch.zeros_like(tokens[:, 0])
        accepted, going = at, at == 0
        left = target(at)
        for rows in tree.levels[:-1]:
            kept, child, rest = self._children(tree, rows, at, left, tokens, draft, uniforms)
            kept = kept & going
            at = torch.where(kept, child, at)
            accepted = accepted + kept.long()
            # Where a child was accepted the walk starts anew, elsewhere the rest stays as it is.
            left = torch.where(kept[:, None], target(at), torch.where(going[:, None], rest, left))
            going = kept
        return Verdict(path_to(tree, at, accepted), accepted, pick(left, uniforms[:, -1]))

    def _children(
        self,
        tree: DraftTree,
        rows: tuple[int, ...],
        at: torch.Tensor,
        q: torch.Tensor,
        tokens: torch.Tensor,
        draft: Rows,
        uniforms: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tries the children of a row [B], one of `rows`.

        Returns:
            kept: [B] bool, whether one was accepted.
            child: [B] int64, that one.
            rest: [B, V], what is left of q if none was.
        """
        most = max(len(tree.children[row]) for row in rows)
        # 0, the root, is no child and stands for none.
        padded = [(*row, *(0,) * (most - len(row))) for row in tree.children]
        numbers = table([row[place] for place in range(most) for row in padded], at)
        children = numbers.reshape(most, tree.size).index_select(1, at)
        chosen, kept = torch.zeros_like(at), at < 0
        p = draft(torch.where(children[0] > 0, at, 0))
        for child in children.unbind(0):
            token = tokens.gather(1, child[:, None])
            uniform = uniforms.gather(1, (child[:, None] - 1).clamp(min=0))
            fits = (uniform * probability(p, token) < probability(q, token))[:, 0]
            there = (child > 0) & ~kept
            chosen = torch.where(there & fits, child, chosen)
            kept = kept | (there & fits)
            rejected = (there & ~fits)[:, None]
            q = torch.where(rejected, normalised((q - p).clamp(min=0.0), q), q)
            if self.without_replacement:
                p = torch.where(rejected, without(p, token[:, 0]), p)
        return kept, chosen, q

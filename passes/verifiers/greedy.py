"""Verification for texts of likeliest tokens: a drafted token stays if it is the target's choice.

Equal drafts of several branches are all followed, so the longest path that agrees is found.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from optimize.ir.draft_tree import DraftTree
from optimize.passes.verifiers.kseq import first_of
from optimize.passes.verifiers.verifier_base import (
    Rows,
    Siblings,
    Verdict,
    Verifier,
    path_to,
    table,
)


@dataclass(frozen=True)
class Greedy(Verifier):
    """Any tree; the text is the one the target generates by itself.

    `target` may return logits or probabilities, of any dtype; of equal ones the first counts, as
    for argmax.
    """

    name: ClassVar[str] = "greedy"

    @property
    def siblings(self) -> Siblings:
        return "any"

    @property
    def needs_draft(self) -> bool:
        return False

    def uniform_count(self, tree: DraftTree) -> int:
        return 0

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
        return verify_choices(tree, tokens, target)


def verify_choices(
    tree: DraftTree, tokens: torch.Tensor, target: Rows, always: torch.Tensor | None = None
) -> Verdict:
    """The verdict by the target's likeliest tokens.

    Args:
        always: [B, S] bool, tokens that are accepted whatever the target says; for chains, as two
            children of a row may not both be accepted unless they are equal.
    """
    numbers = torch.arange(tree.size, device=tokens.device)
    parents = table((0, *tree.parents), tokens)
    live = (numbers == 0).expand(tokens.shape)
    at = torch.zeros_like(tokens[:, 0])
    accepted = torch.zeros_like(at)
    for _ in range(tree.depth):
        kept = tokens == target(at).argmax(-1)[:, None]
        if always is not None:
            kept = kept | always
        live = live.index_select(1, parents) & kept & (numbers > 0)
        found = live.long().sum(1) > 0
        at = torch.where(found, first_of(live), at)
        accepted = accepted + found.long()
    return Verdict(path_to(tree, at, accepted), accepted, target(at).argmax(-1))

"""What every verifier of drafted tokens takes and returns, and what several of them share.

A verifier walks from the root of a draft tree along tokens it accepts, and names the token that
follows the last one. A lossless one does so that the text has exactly the target's distribution,
whatever the draft proposes.

Verifiers are functions of tensors, batch first, probabilities in float64; random numbers come in
as uniforms in [0, 1). Loops are over levels and drafts only, so they can be recorded into graphs.
A stop token among the accepted ones is not looked at; the caller ends the text there.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import ClassVar, Literal, NamedTuple

import torch

from optimize.ir.draft_tree import DraftTree

Rows = Callable[[torch.Tensor], torch.Tensor]
"""Rows [B] int64 → probabilities [B, V] float64 of the token after that row of each sample."""

Siblings = Literal["any", "with_replacement", "without_replacement"]
"""How the children of a row must have been drawn from the draft's distribution there."""


class Verdict(NamedTuple):
    """What a verifier found.

    Attributes:
        path: [B, depth] int64, rows of the accepted tokens in order; behind `accepted` of them,
            some row of the tree.
        accepted: [B] int64, in [0, depth].
        token: [B] int64, follows the accepted ones; never drafted in vain, as it comes from the
            target.
    """

    path: torch.Tensor
    accepted: torch.Tensor
    token: torch.Tensor


class Verifier(ABC):
    """Decides which drafted tokens stay. To add one: a subclass, and a line in the catalogue.

    Attributes:
        name: as in recipes and reports.
        lossy: whether the text may differ from the target's.
        needs_scores: whether it asks for scores of the drafted tokens.
    """

    name: ClassVar[str]
    lossy: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False

    @property
    def siblings(self) -> Siblings:
        """How children of a row have to be drawn."""
        return "with_replacement"

    @property
    def needs_draft(self) -> bool:
        """Whether it asks for the draft's probabilities."""
        return True

    def uniform_count(self, tree: DraftTree) -> int:
        """U, the random numbers of one round and sample."""
        return tree.size

    @abstractmethod
    def accepts(self, tree: DraftTree) -> str | None:
        """Why it cannot verify a tree, or None."""

    @abstractmethod
    def verify(
        self,
        tree: DraftTree,
        tokens: torch.Tensor,
        target: Rows,
        draft: Rows | None = None,
        uniforms: torch.Tensor | None = None,
        scores: torch.Tensor | None = None,
    ) -> Verdict:
        """One round.

        Args:
            tree: one that it accepts.
            tokens: [B, S] int64, by row.
            target: what the target would draw the next token from.
            draft: what the children of a row were drawn from, after temperature and the like; only
                asked for rows that have children.
            uniforms: [B, U] float64, in [0, 1). Column i belongs to row i + 1, the last one to the
                token that follows.
            scores: [B, S], of the tokens in these rows.
        """


def only_chains(tree: DraftTree, name: str) -> str | None:
    """Why a verifier of one draft cannot verify a tree, or None."""
    if tree.drafts == 1:
        return None
    return f"{name}: found a tree of {tree.size - 1} tokens {tree.depth} deep, expected one chain"


def table(values: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """[n] int64 of given numbers, made by ops that can be recorded; engines fold them."""
    runs = [
        torch.full((len(list(run)),), value, dtype=torch.int64, device=like.device)
        for value, run in groupby(values)
    ]
    return torch.cat(runs) if len(runs) > 1 else runs[0]


def probability(probabilities: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[B, V] at tokens [B, K]: [B, K]."""
    return probabilities.gather(1, tokens)


def path_to(tree: DraftTree, row: torch.Tensor, accepted: torch.Tensor) -> torch.Tensor:
    """[B, depth]: the rows that lead from the root to a row [B] of depth `accepted` [B]."""
    parents = table((0, *tree.parents), row)
    path = []
    for level in range(tree.depth, 0, -1):
        path.append(row)
        row = torch.where(accepted >= level, parents.index_select(0, row), row)
    return torch.stack(path[::-1], 1)

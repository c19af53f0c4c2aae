"""Judge decoding: a drafted token also stays if a trained judge finds it right. Lossy.

The judge is one linear layer on the target's last hidden state at the drafted token's own row,
which has read the token. Its scores w e + b are compared with log(threshold / (1 - threshold)).
Where target or judge accepts, the walk goes on; the first token that both reject is replaced, as
it would have been without the judge.

Source: Bachmann et al. (2025), Judge Decoding, section 4.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from optimize.ir.draft_tree import DraftTree
from optimize.passes.verifiers.greedy import verify_choices
from optimize.passes.verifiers.kseq import verify_independent
from optimize.passes.verifiers.verifier_base import (
    Rows,
    Siblings,
    Verdict,
    Verifier,
    only_chains,
)


@dataclass(frozen=True)
class Judge(Verifier):
    """One draft; the text follows neither the target's distribution nor the draft's.

    Args:
        threshold: the judge accepts from this probability on; above 1 never, up to 0 always.
        stop_tokens: never accepted by the judge alone, so that it does not end texts early.
        sampled: whether tokens are drawn; otherwise the likeliest are taken, `target` may return
            logits, and neither the draft's probabilities nor uniforms are needed.
    """

    threshold: float = 0.5
    stop_tokens: tuple[int, ...] = ()
    sampled: bool = True

    name: ClassVar[str] = "judge"
    lossy: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if math.isnan(self.threshold):
            raise ValueError("judge: found threshold nan, expected a number; 0.5 is usual")

    @property
    def siblings(self) -> Siblings:
        return "with_replacement" if self.sampled else "any"

    @property
    def needs_draft(self) -> bool:
        return self.sampled

    def uniform_count(self, tree: DraftTree) -> int:
        return tree.size if self.sampled else 0

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
        assert scores is not None
        right = self.finds_right(tokens, scores)
        if not self.sampled:
            return verify_choices(tree, tokens, target, right)
        assert draft is not None and uniforms is not None
        return verify_independent(tree, tokens, target, draft, uniforms, right)

    def finds_right(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """[B, S] bool: the tokens [B, S] that the judge accepts, from their scores [B, S]."""
        if self.threshold > 1:
            right = tokens < 0
        elif self.threshold <= 0:
            right = tokens >= 0
        elif self.threshold == 1:
            # A probability of exactly 1 needs an infinite score.
            right = scores == math.inf
        else:
            right = scores >= math.log(self.threshold / (1 - self.threshold))
        for stop in self.stop_tokens:
            right = right & (tokens != stop)
        return right

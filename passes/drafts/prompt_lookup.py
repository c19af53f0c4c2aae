"""Drafts without a model: what followed the last tokens where they stood earlier in the text.

    … the cat sat on the ⟨mat⟩ … and there the cat ─▶ sat on the mat

Texts that repeat themselves or their prompt, such as edits, summaries and code, are drafted well.
The longest match counts, of several the latest. Nothing is drawn: where tokens are, the draft's
distribution is all on the one it proposes.

Source: Saxena (2023), Prompt Lookup Decoding.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import one_hot

from optimize.ir.builder import Builder, fake_mode_of
from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.ir.recording import record
from optimize.passes.drafts.draft_base import DraftGraphs, Round, round_inputs


@dataclass(frozen=True)
class PromptLookup:
    """Looks tokens up in the text.

    Args:
        ngram: most tokens that have to agree.
    """

    ngram: int = 3

    def declines(self, program: Program) -> str | None:
        return None

    def graphs(self, program: Program, plan: Round) -> DraftGraphs:
        assert program.decoding is not None
        return DraftGraphs(
            draft=self._round(program, plan),
            before=self._prefill(program, plan),
            details={"ngram": self.ngram},
        )

    def _prefill(self, program: Program, plan: Round) -> Graph:
        """The history begins with the prompt."""
        prefill = program.graphs["prefill"]
        builder = Builder(fake_mode_of(prefill))
        ids, lengths = (
            builder.input(name, prefill.node(name).meta["val"]) for name in ("input_ids", "lengths")
        )
        history, known = record(
            builder, lambda ids, lengths: _begun(ids, lengths, plan.capacity), ids, lengths
        )
        return builder.finish({"history": history, "known": known}, prefill.dimensions)

    def _round(self, program: Program, plan: Round) -> Graph:
        decoder = program.decoder
        assert decoder is not None and program.decoding is not None
        builder = Builder(fake_mode_of(decoder))
        batch = decoder.node("input_ids").meta["val"].shape[0]
        inputs = round_inputs(builder, plan, batch)
        history = builder.input("history", builder.fake((batch, plan.capacity), torch.int64))
        known = builder.input("known", builder.fake((batch,), torch.int64))
        history, known = record(builder, _written, history, known, inputs["run"], inputs["emitted"])
        drafted = record(
            builder,
            lambda history, known: looked_up(history, known, plan.tree.depth, self.ngram),
            history,
            known,
        )
        outputs = {"drafted": drafted, "history": history, "known": known}
        if plan.verifier.needs_draft:
            vocabulary = program.decoding.vocabulary
            outputs["draft_probabilities"] = record(
                builder, lambda tokens: one_hot(tokens, vocabulary).double(), drafted
            )
        return builder.finish(outputs, {"batch": decoder.dimensions["batch"]})


def looked_up(history: torch.Tensor, known: torch.Tensor, count: int, ngram: int) -> torch.Tensor:
    """What followed the last tokens at their latest, longest match.

    Args:
        history: [B, C] int64, of which the first `known` tokens count.
        known: [B] int64, at least 1.
        count: tokens to propose.
        ngram: most tokens that have to agree.
    Returns:
        [B, count] int64; without a match the last token, again and again.
    """
    places = torch.arange(history.shape[1], device=history.device)
    last = known[:, None] - 1
    agreed = torch.zeros_like(history)
    so_far = places < last  # a match ends before the last token
    for back in range(ngram):
        token = history.gather(1, torch.clamp(last - back, min=0))
        # What stood `back` tokens before each place; none before the first.
        earlier = history if back == 0 else torch.cat([history[:, :back] * 0 - 1, history], 1)
        so_far = so_far & (earlier[:, : history.shape[1]] == token) & (last >= back)
        agreed = agreed + so_far.long()
    # The longest match, of several the latest.
    rank = torch.where(agreed > 0, agreed * history.shape[1] + places, -1)
    best, end = rank.amax(1, keepdim=True), rank.argmax(1, keepdim=True)
    start = torch.where(best >= 0, end, last) + 1
    following = start + torch.arange(count, device=history.device)
    return history.gather(1, torch.minimum(following, last))


def _begun(
    ids: torch.Tensor, lengths: torch.Tensor, capacity: int
) -> tuple[torch.Tensor, torch.Tensor]:
    known = torch.where(lengths > 0, lengths, ids.shape[1])
    room = torch.zeros(ids.shape[0], capacity - ids.shape[1], dtype=ids.dtype, device=ids.device)
    return torch.cat([ids, room], 1), known


def _written(
    history: torch.Tensor, known: torch.Tensor, run: torch.Tensor, emitted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The history with a run behind it."""
    places = torch.arange(history.shape[1], device=history.device) - known[:, None]
    fresh = (places >= 0) & (places < emitted[:, None])
    written = run.gather(1, torch.clamp(places, 0, run.shape[1] - 1))
    return torch.where(fresh, written, history), known + emitted

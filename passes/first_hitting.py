"""Follows the reverse process of masked diffusion from one reveal to the next, not in time steps.

    step (steps in all): coin for every mask,       step (groups in all): masks drawn at random,
        logits [B, L, V], a token for every mask  ───▶  logits [B, g, V] of these, a token for each

When masks are revealed is known in advance: of n masks the next goes at tau * u^(1/n), at a place
drawn uniformly. So no call reveals nothing, no token is drawn that is not kept, and since the
places are known before the model runs, what follows its last attention runs on their rows only.
With one reveal for each call this is the reverse process itself, which time steps only approach;
several at once (`calls`) err as steps do, by taking tokens of one call as independent.

Changes: the graph "step" and its tables; fewer calls. A model that looks at the time gets that of
    the reveal.
Declines when: the program does not fill in masked text; its order depends on what the model says,
    which is another law; another pass has chosen the order or reads the logits of all masks.
Numerics: a sampler of the same reverse process with other noise; the same text where a random order
    is kept.
Source: Zheng et al. (2025), Masked Diffusion Models are Secretly Time-Agnostic Masked Models and
    Exploit Inaccurate Categorical Sampling (arXiv 2409.02908), first-hitting sampler.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from optimize.capture.unmask_loop import remade
from optimize.ir.exporting import Target
from optimize.ir.program import Program
from optimize.ir.unmask import FirstHitting as Hitting
from optimize.ir.unmask import even_groups
from optimize.passes.choices import Choice, OneOf
from optimize.passes.pass_base import Numerics, OracleResult, Pass, Rewritten
from optimize.passes.reveal_check import reveal_oracles


@dataclass(frozen=True)
class FirstHitting(Pass):
    """Options.

    Args:
        calls: of the model for each block, in [1, tokens of a block]; as many reveals as evenly as
            can be in each. None reveals one token at a time, the exact process.
        keep_order: keep the loop's own calls and groups; then only what is computed changes. For
            loops with a random order.
        chosen_rows: compute logits of the revealed rows only.
        extrapolate: carry predictions on linearly in time within a group. Experimental; needs the
            logits of all rows.
    """

    calls: int | None = None
    keep_order: bool = False
    chosen_rows: bool = True
    extrapolate: bool = False

    numerics: ClassVar[Numerics] = "approximate"

    def __post_init__(self) -> None:
        if self.calls is not None and self.calls < 1:
            raise ValueError(f"calls: found {self.calls}, expected at least 1")
        if self.keep_order and self.calls is not None:
            raise ValueError(
                f"calls: found {self.calls} with keep_order, which keeps the loop's; leave one away"
            )
        if self.extrapolate and self.chosen_rows:
            raise ValueError(
                "extrapolate: found it with chosen_rows, expected chosen_rows: false; predictions "
                "of all rows are carried on"
            )

    @classmethod
    def choices(cls, program: Program, target: Target) -> Mapping[str, Choice]:
        """Reveals per call, from one to a block's sixteenth part."""
        unmasking = program.unmasking
        if unmasking is None or not unmasking.loop.order_is_blind:
            return {}
        width = unmasking.loop.block
        calls = sorted({width // group for group in (1, 2, 4, 8, 16) if width // group})
        return {"calls": OneOf(tuple(calls))}

    def declines(self, program: Program) -> str | None:
        unmasking = program.unmasking
        if unmasking is None:
            return "does not fill in masked text"
        loop = unmasking.loop
        if not loop.order_is_blind:
            return (
                f"remasking {loop.remasking!r} fills in first what the model is sure of, which is "
                "another law than the reverse process; capture with remasking 'random' or "
                "'ancestral'"
            )
        if unmasking.first_hitting is not None:
            return "the loop follows first hitting already"
        if unmasking.commit is not None or unmasking.resample is not None:
            return "another pass has changed the loop before; put first_hitting before it"
        if self.keep_order and loop.remasking != "random":
            return (
                "coins reveal a number of masks that is not known before; keep_order is for "
                "remasking 'random'"
            )
        if self.calls is not None and self.calls > loop.block:
            return f"found calls {self.calls} for blocks of {loop.block} tokens, expected no more"
        return None

    def identity(self) -> Self:
        """The loop's own order, on the rows that matter: the same text."""
        return replace(self, calls=None, keep_order=True, extrapolate=False)

    def rewrite(self, program: Program) -> Rewritten:
        unmasking = program.unmasking
        assert unmasking is not None
        loop = unmasking.loop
        calls = loop.calls_per_block if self.keep_order else (self.calls or loop.block)
        hitting = Hitting(even_groups(loop.block, calls), self.chosen_rows, self.extrapolate)
        after = remade(program, replace(unmasking, first_hitting=hitting))
        details = {
            "calls": calls * loop.blocks,
            "calls_before": loop.calls,
            "reveals_per_call": max(hitting.groups),
            "exact": max(hitting.groups) == 1,
        }
        if self.extrapolate:
            note = "first_hitting: extrapolate is experimental; its law is none of the process"
            after = replace(after, notes=(*after.notes, note))
        return Rewritten(after, ("step",), details)

    def oracles(
        self, before: Program, after: Program, request: Mapping[str, Any]
    ) -> list[OracleResult]:
        """What was given stays, all is filled in, and each call reveals as many as planned."""
        return reveal_oracles(after, request)

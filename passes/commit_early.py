"""Fills in all that is left of a masked text at once, as soon as the answer is certain.

    step: text ─▶ text with k masks fewer     ───▶    step: … and, where the mean gap of the two
                                                      largest logits over the answer reaches a
                                                      threshold, without any mask

A model often knows the answer long before the last call. How certain it is, is read from the logits
of a call that runs anyway; the thresholds fall with the share of the calls that were made. A sample
that has committed stays as it is while others of its batch go on.

Changes: the graph "step", its table "threshold"; fewer calls. The result "calls" says how many each
    sample took.
Declines when: the program does not fill in masked text; the order leaves no logits of the answer
    (first_hitting); candidates are resampled; the answer lies outside the text.
Numerics: lossy; the same text where no threshold is reached.
Source: Li et al. (2025), Diffusion Language Models Know the Answer Before Decoding (arXiv
    2508.19982), Prophet.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

from optimize.capture.unmask_loop import remade
from optimize.ir.exporting import Target
from optimize.ir.program import Program
from optimize.ir.unmask import Commit
from optimize.passes.choices import Choice, OneOf
from optimize.passes.pass_base import Numerics, OracleResult, Pass, Rewritten
from optimize.passes.reveal_check import reveal_oracles

GapOver = Literal["region", "masked"]

LARGEST_GAP = 1e4
"""Logits further apart than this come from no softmax that is still one."""


@dataclass(frozen=True)
class CommitEarly(Pass):
    """Options.

    Args:
        thresholds: mean gaps that are enough, in logits, in [0, 10000] or infinite: before the
            first of `breakpoints`, between them, and after the last. They go with the scale of a
            model's logits: tune them for each.
        breakpoints: shares of the calls, counted from 1, in (0, 1), increasing.
        answer_start: first token of the answer within the text; None takes all that is masked.
        answer_length: tokens of the answer, at least 1.
        gap_over: "region", all tokens of the answer, also those that are filled in, whose gaps are
            large; "masked", those that are still masked.
    """

    thresholds: tuple[float, ...] = (7.5, 5.0, 2.5)
    breakpoints: tuple[float, ...] = (0.33, 0.67)
    answer_start: int | None = None
    answer_length: int = 5
    gap_over: GapOver = "region"

    numerics: ClassVar[Numerics] = "approximate"

    def __post_init__(self) -> None:
        if len(self.thresholds) != len(self.breakpoints) + 1:
            raise ValueError(
                f"thresholds: found {len(self.thresholds)} for {len(self.breakpoints)} breakpoints,"
                " expected one more than these"
            )
        for item in self.thresholds:
            if math.isnan(item) or not (0 <= item <= LARGEST_GAP or item == math.inf):
                raise ValueError(
                    f"thresholds: found {item}, expected gaps between logits, in "
                    f"[0, {LARGEST_GAP:g}], or inf"
                )
        limits = (0.0, *self.breakpoints, 1.0)
        if any(not low < high for low, high in zip(limits, limits[1:], strict=False)):
            raise ValueError(
                f"breakpoints: found {list(self.breakpoints)}, expected increasing shares of the "
                "calls, in (0, 1)"
            )
        if self.answer_start is not None and self.answer_start < 0:
            raise ValueError(f"answer_start: found {self.answer_start}, expected at least 0")
        if self.answer_length < 1:
            raise ValueError(f"answer_length: found {self.answer_length}, expected at least 1")
        if self.gap_over not in get_args(GapOver):
            raise ValueError(
                f"gap_over: found {self.gap_over!r}, expected one of {', '.join(get_args(GapOver))}"
            )

    @classmethod
    def choices(cls, program: Program, target: Target) -> Mapping[str, Choice]:
        """Thresholds around the published ones."""
        unmasking = program.unmasking
        if unmasking is None or unmasking.first_hitting is not None:
            return {}
        scales = tuple(
            tuple(scale * item for item in (7.5, 5.0, 2.5)) for scale in (0.5, 0.75, 1.0, 1.5, 2.0)
        )
        return {"thresholds": OneOf(scales)}

    def declines(self, program: Program) -> str | None:
        unmasking = program.unmasking
        if unmasking is None:
            return "does not fill in masked text"
        if unmasking.commit is not None:
            return "the loop commits early already"
        if unmasking.first_hitting is not None:
            return "first_hitting computes no logits of the answer; use one of the two"
        if unmasking.resample is not None:
            return "energy_resample chooses among whole texts; use one of the two"
        if self.answer_start is not None:
            end, length = self.answer_start + self.answer_length, unmasking.loop.length
            if end > length:
                return (
                    f"the answer, tokens {self.answer_start} to {end - 1}, lies outside the text "
                    f"of {length} tokens"
                )
        return None

    def identity(self) -> Self:
        """Thresholds that nothing reaches; without a region, for whose end there is no gap left."""
        return replace(self, thresholds=(math.inf,) * len(self.thresholds), gap_over="region")

    def rewrite(self, program: Program) -> Rewritten:
        unmasking = program.unmasking
        assert unmasking is not None
        region = None
        if self.answer_start is not None:
            region = (self.answer_start, self.answer_length)
        commit = Commit(self.thresholds, self.breakpoints, region, self.gap_over == "masked")
        note = "commit_early is lossy: what is left when an answer is certain is filled in at once"
        chosen = replace(unmasking, commit=commit)
        after = remade(program, chosen, notes=(*program.notes, note))
        return Rewritten(after, ("step",), {"lossy": True, "calls_at_most": unmasking.loop.calls})

    def oracles(
        self, before: Program, after: Program, request: Mapping[str, Any]
    ) -> list[OracleResult]:
        """What was given stays, all is filled in, and no sample takes more calls than before."""
        calls = [_calls(program, request) for program in (before, after)]
        more = max(0.0, float((calls[1] - calls[0]).max()))
        return [*reveal_oracles(after, request), OracleResult("calls more than before", more, 0.0)]

    def figures(
        self, before: Program, after: Program, request: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Mean calls of the model for a sample, before and after."""
        names = ("calls_before", "calls")
        return {
            name: float(_calls(program, request).mean())
            for name, program in zip(names, (before, after), strict=True)
        }


def _calls(program: Program, request: Mapping[str, Any]) -> Any:
    return program(**request)["calls"].double()

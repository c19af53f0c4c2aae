"""Drops the image tokens that a question does not need, within the prefill of a decoder.

    layer K1 - 1    hidden [B, 789, D]            layer K1 - 1    hidden [B, 789, D]
    layer K1        hidden [B, 789, D]    ───▶    layer K1        hidden [B, 335, D]
    layer K2        hidden [B, 789, D]            layer K2        hidden [B, 84, D]
    key_20          [B, G, 1045, D]               key_20          [B, G, 340, D]

At each cut the tokens are scored by the attention of the last text token in the layer before,
without rotary positions, which would prefer the bottom of the picture (`visual_score`). The first
stage keeps a uniform grid besides, because early scores miss things. Kept tokens keep their
positions; the caches of later layers are shorter, and decoding goes on at the position that it
would have had. Where the image stands, and on which grid, is read from the axes of the graphs.

Changes: the prefill graph from layer K1 on; the caches of these layers in the decode graph; the
    slots `dropped_1`, `kept_1` … of the loop.
Declines when: the program does not generate tokens; its prefill has no image, or one in several
    pieces; the grid of the image cannot be read from the vision graph; the layers are fewer than
    the cuts ask for; an earlier pass pruned already.
Numerics: approximate; exact at a keep ratio of 1.
Source: Endo et al. (2024), Feather the Throttle, sections 4 and 5; criterion "fastv": Chen et al.
    (2024), An Image is Worth 1/2 Tokens After Layer 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

from optimize.capture.decode_loop import decode_program
from optimize.ir.cache_lengths import Cut, with_shorter_caches
from optimize.ir.exporting import Target
from optimize.ir.image_span import ImageSpan, image_span
from optimize.ir.program import Program
from optimize.ir.token_axis import CannotSubset
from optimize.passes.choices import Choice, OneOf, RealNumber
from optimize.passes.pass_base import Declined, Numerics, OracleResult, Pass, Rewritten
from optimize.passes.visual_check import pruning_oracles
from optimize.passes.visual_figures import visual_figures
from optimize.passes.visual_score import Amount
from optimize.passes.visual_stage import Stage, pruned

Criterion = Literal["feather", "fastv", "external"]
Mode = Literal["official", "static"]

FIRST_SHARE, SECOND_SHARE, FASTV_SHARE = 8 / 32, 16 / 32, 3 / 32
"""Where the published models of 32 layers cut, as a share of the layers."""


@dataclass(frozen=True)
class PruneVisualTokens(Pass):
    """Options.

    Args:
        criterion: "feather" scores without rotary positions, in two stages; "fastv" with them, in
            one stage and without a grid; "external" takes the request field `importance` [batch,
            image tokens], each in [0, 1], in the place of the scores.
        mode: "official" keeps the best and the grid, so that the number of tokens depends on the
            image; "static" keeps the same number for every image, for engines of fixed shapes.
        first_layer: K1, the first layer with fewer tokens, in [1, layers); None is a quarter of the
            layers, of "fastv" three thirty-seconds, rounded down.
        second_layer: K2, greater than K1; None is half of the layers. "fastv" has none.
        keep_ratio: share of the tokens that the scores keep in the first stage, in (0, 1]; the
            second keeps its square of what is left.
        stride: of the grid, in tokens, at least 1; None for no grid.
        all_keys: normalise the scores of "fastv" over all keys, as its own code does, instead of
            over the image, as it was compared with FEATHER.
    """

    criterion: Criterion = "feather"
    mode: Mode = "static"
    first_layer: int | None = None
    second_layer: int | None = None
    keep_ratio: float = 0.3
    stride: int | None = 3
    all_keys: bool = False

    numerics: ClassVar[Numerics] = "approximate"

    def __post_init__(self) -> None:
        if self.criterion not in get_args(Criterion):
            raise ValueError(
                f"criterion: found {self.criterion!r}, expected one of {get_args(Criterion)}"
            )
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode: found {self.mode!r}, expected one of {get_args(Mode)}")
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio: found {self.keep_ratio}, expected a number in (0, 1]")
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"stride: found {self.stride}, expected at least 1, or none")
        if self.all_keys and self.criterion != "fastv":
            raise ValueError(
                f"all_keys: found true for criterion {self.criterion!r}, expected it for 'fastv'"
            )
        first, second = self.first_layer, self.second_layer
        if first is not None and first < 1:
            raise ValueError(
                f"first_layer: found {first}, expected at least 1: the layer before it scores"
            )
        if second is not None and self.criterion == "fastv":
            raise ValueError(
                "second_layer: found one for criterion 'fastv', which has a single stage"
            )
        if first is not None and second is not None and second <= first:
            raise ValueError(
                f"second_layer: found {second}, expected more than first_layer {first}"
            )

    @classmethod
    def choices(cls, program: Program, target: Target) -> Mapping[str, Choice]:
        return {"keep_ratio": RealNumber(0.05, 0.9), "stride": OneOf((None, 2, 3, 4))}

    def declines(self, program: Program) -> str | None:
        decoding = program.decoding
        if decoding is None or "prefill" not in program.graphs:
            return "the program does not generate tokens"
        if decoding.image_tokens == 0 or "vision" not in program.graphs:
            return "the prompts have no image"
        if any(slot.name == "kept_1" for slot in program.loop.slots):
            return "visual tokens were pruned already"
        layers = self.cuts(decoding.layers)
        if list(layers) != sorted({*layers}) or layers[-1] >= decoding.layers:
            return (
                f"found cuts before layers {', '.join(map(str, layers))}, expected them ascending "
                f"and below {decoding.layers}, the number of layers"
            )
        try:
            span = image_span(program)
        except CannotSubset as reason:
            return str(reason)
        if self._stride is not None and span.grid is None:
            return (
                "the image tokens do not come from one grid of rows and columns, which `stride` "
                "needs; set stride to none"
            )
        return None

    def identity(self) -> Self:
        return replace(self, keep_ratio=1.0)

    def rewrite(self, program: Program) -> Rewritten:
        decoding = program.decoding
        assert decoding is not None
        span = image_span(program)
        graph = program.graphs["prefill"]
        cuts: list[Cut] = []
        capacity, count = decoding.capacity, span.tokens
        has_rotary = False
        amounts = self.amounts(span)
        for layer, amount in zip(self.cuts(decoding.layers), amounts, strict=True):
            capacity += amount.most - count
            number = len(cuts) + 1
            cut = Cut(layer, f"dropped_{number}", capacity)
            stage = Stage(number, cut, amount, count, self.criterion, self.all_keys)
            try:
                graph, rotates = pruned(graph, stage, span)
            except CannotSubset as reason:
                raise Declined(str(reason)) from reason
            has_rotary = has_rotary or rotates
            count = amount.most
            cuts.append(cut)
        decode = with_shorter_caches(program.graphs["decode"], cuts)
        details: dict[str, Any] = {
            "image_tokens": span.tokens,
            "grid": None if span.grid is None else list(span.grid),
            "layers": decoding.layers,
            "cuts": [cut.layer for cut in cuts],
            "kept_at_most": [amount.most for amount in amounts],
        }
        if self.criterion == "feather" and not has_rotary:
            details["note"] = (
                "the decoder has no rotary positions: scoring without them brings nothing here"
            )
        graphs = {**program.graphs, "prefill": graph, "decode": decode}
        sites = tuple(f"prefill layer {cut.layer}" for cut in cuts)
        made = decode_program(graphs, program.weights, decoding)
        after = replace(program, graphs=graphs, loop=made.loop, signature=made.signature)
        return Rewritten(after, sites, details)

    def oracles(
        self, before: Program, after: Program, request: Mapping[str, Any]
    ) -> list[OracleResult]:
        """The logits equal those of the whole prefill with the dropped tokens masked as keys."""
        assert before.decoding is not None
        cuts = self.cuts(before.decoding.layers)
        return pruning_oracles(before, after, request, cuts, image_span(before))

    def figures(
        self, before: Program, after: Program, request: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Which tokens of the request's first picture are kept, and what that saves."""
        assert before.decoding is not None
        span = image_span(before)
        cuts, amounts = self.cuts(before.decoding.layers), self.amounts(span)
        made = visual_figures(before, after, request, cuts, amounts, span, self.criterion)
        return {"visual_tokens": made}

    def amounts(self, span: ImageSpan) -> tuple[Amount, ...]:
        """How many tokens each stage keeps of an image."""
        tokens, ratio = span.tokens, self.keep_ratio
        best = max(1, int(tokens * ratio))
        if self.criterion == "fastv":
            return (Amount(best, best, None, exact=True),)
        grid, uniform = None, 0
        if self._stride is not None and span.grid is not None:
            grid = (span.grid[1], self._stride)
            uniform = -(-span.grid[0] // self._stride) * -(-span.grid[1] // self._stride)
        if self.mode == "official":
            most = min(tokens, best + uniform)
            second = Amount(max(1, int(most * ratio**2)), ratio**2)
            return Amount(most, best, grid), second
        most = max(1, uniform + int((tokens - uniform) * ratio))
        left = max(1, int(most * ratio**2))
        return Amount(most, best, grid, exact=True), Amount(left, left, exact=True)

    @property
    def _stride(self) -> int | None:
        return None if self.criterion == "fastv" else self.stride

    def cuts(self, layers: int) -> tuple[int, ...]:
        """The layers, of so many, before which tokens are dropped."""
        if self.criterion == "fastv":
            return (self.first_layer or max(1, int(layers * FASTV_SHARE)),)
        first = self.first_layer or max(1, round(layers * FIRST_SHARE))
        return first, self.second_layer or max(first + 1, round(layers * SECOND_SHARE))

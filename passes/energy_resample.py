"""Draws whole texts for the masks, and keeps one of them by its energy.

    step: text ─▶ logits ─▶       ───▶    propose: text ─▶ k candidates, every mask drawn by itself
        tokens, each by itself            energy: candidates ─▶ E, of a model that sees all tokens
                                          choose: one candidate, with weights exp(-E) ─▶ text

Masks filled in at one call are drawn as if independent, which is the error of every parallel
reveal. An energy that sees whole texts corrects it: it is the difference between another model's
distribution and the denoiser's, and weights of k candidates make a draw from the former, the nearer
the more there are. Early calls hide most, so a window says which calls do this.

Changes: the graphs "propose", "energy" and "choose" at the calls within the window; outside it
    "step" as it was. The number of calls stays: the gain is that fewer give texts as good.
Declines when: the program does not fill in masked text, takes the likeliest tokens, or fills in
    first what the model is sure of; the energy is of another vocabulary or of another
    denoiser, or a head is asked for a denoiser that looks at the time.
Numerics: another sampler; the same text where the window is empty.
Source: Xu et al. (2025), Energy-Based Diffusion Language Models for Text Generation (arXiv
    2410.21357); the sign of its released sampler is the opposite, and wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

from optimize.capture.unmask_loop import remade
from optimize.ir.decode import DecodeLoop
from optimize.ir.exporting import Target
from optimize.ir.program import Program, denoising_repeat
from optimize.ir.unmask import Resample
from optimize.passes.choices import Choice
from optimize.passes.drafts.catalog import captured_source, file_of, tokenizer_of
from optimize.passes.energies.autoregressive import AutoregressiveEnergy
from optimize.passes.energies.energy_base import Energy
from optimize.passes.energies.nce_head import NoiseContrastiveEnergy
from optimize.passes.pass_base import Declined, Numerics, OracleResult, Pass, Rewritten
from optimize.passes.reveal_check import reveal_oracles

EnergyKind = Literal["model", "head"]

MOST_CANDIDATES = 1024


@dataclass(frozen=True)
class EnergyResample(Pass):
    """Options.

    Args:
        source: of the energy: a causal language model's folder or hub id, the file of a head, or a
            name of the zoo.
        candidates: texts drawn at a call, in [1, 1024].
        window: masked shares between which calls resample, the least and the greatest, in [0, 1].
        temperature: what energies are divided by, in (0, 1000]; above 1 where they differ so much
            that one candidate always takes all.
        start_token: token before a text without a prompt, for the model to judge its first token.
            With "model" only.
        carry_over: judge the tokens that were masked only. With "model" only.
        energy: "model", how likely an autoregressive model finds a text; "head", what a head says
            that was fitted to the denoiser by noise contrastive estimation.
    """

    source: str | None = None
    candidates: int = 4
    window: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    start_token: int | None = None
    carry_over: bool = False
    energy: EnergyKind = "model"

    numerics: ClassVar[Numerics] = "approximate"

    def __post_init__(self) -> None:
        if not 1 <= self.candidates <= MOST_CANDIDATES:
            raise ValueError(
                f"candidates: found {self.candidates}, expected a number in [1, {MOST_CANDIDATES}]"
            )
        if len(self.window) != 2 or not all(0 <= item <= 1 for item in self.window):
            raise ValueError(
                f"window: found {list(self.window)}, expected two masked shares in [0, 1]"
            )
        if not 0 < self.temperature <= 1000:
            raise ValueError(
                f"temperature: found {self.temperature}, expected a number in (0, 1000]"
            )
        if self.energy not in get_args(EnergyKind):
            raise ValueError(
                f"energy: found {self.energy!r}, expected one of {', '.join(get_args(EnergyKind))}"
            )
        if self.energy == "head" and (self.start_token is not None or self.carry_over):
            name = "carry_over" if self.start_token is None else "start_token"
            raise ValueError(
                f"{name}: found {getattr(self, name)} with energy: head, which judges what was "
                "masked, with all tokens in sight; leave it away"
            )

    @classmethod
    def choices(cls, program: Program, target: Target) -> Mapping[str, Choice]:
        """None: an energy has to be named first."""
        return {}

    def declines(self, program: Program) -> str | None:
        unmasking = program.unmasking
        if unmasking is None:
            return "does not fill in masked text"
        loop = unmasking.loop
        if loop.sampling is None:
            return (
                "the loop takes the likeliest tokens, so all candidates are one; capture with "
                "sampling"
            )
        if not loop.order_is_blind:
            return (
                f"remasking {loop.remasking!r} depends on how sure the model is of single tokens, "
                "expected 'random' or 'ancestral'"
            )
        if unmasking.commit is not None:
            return "the loop commits early; use one of the two"
        if unmasking.resample is not None:
            return "the loop resamples already"
        if unmasking.first_hitting is not None and unmasking.first_hitting.extrapolate:
            return "first_hitting extrapolates predictions of single tokens; use one of the two"
        if self.source is None:
            return None if self._is_empty else "found no source of an energy; give one"
        try:
            return self._energy(program).declines(program)
        except Declined as error:
            return str(error)

    def identity(self) -> Self:
        """No call lies within the window."""
        return replace(self, window=(1.0, 0.0))

    def rewrite(self, program: Program) -> Rewritten:
        unmasking = program.unmasking
        assert unmasking is not None
        low, high = self.window
        chosen = replace(
            unmasking, resample=Resample(self.candidates, (low, high), self.temperature)
        )
        if self._is_empty:
            after, details = remade(program, chosen), {}
        else:
            made = self._energy(program).graph(program, self.candidates)
            weights = {**program.weights, **made.weights}
            after, details = remade(program, chosen, made.graph, weights=weights), {**made.details}
        steps = denoising_repeat(after).steps
        details |= {"calls": len(steps), "resampled": steps.count("resample")}
        return Rewritten(after, ("step",), details)

    def oracles(
        self, before: Program, after: Program, request: Mapping[str, Any]
    ) -> list[OracleResult]:
        """What was given stays, and all is filled in."""
        return reveal_oracles(after, request)

    @property
    def _is_empty(self) -> bool:
        return self.window[0] > self.window[1]

    def _energy(self, program: Program) -> Energy:
        assert self.source is not None and program.unmasking is not None
        loop = program.unmasking.loop
        rows = loop.length + loop.max_prompt + 1
        judged = DecodeLoop(max(2, rows - 1), 1)
        if self.energy == "head":
            return NoiseContrastiveEnergy(file_of(self.source, judged))
        model = captured_source(self.source, judged)
        theirs, ours = tokenizer_of(model), tokenizer_of(program)
        if theirs is not None and ours is not None and theirs != ours:
            raise Declined(
                f"{self.source}: found another tokenizer than the text's, expected the same: equal "
                "numbers must mean equal tokens"
            )
        return AutoregressiveEnergy(model, self.source, self.start_token, self.carry_over)

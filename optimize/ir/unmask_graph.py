"""The graphs of an unmask loop: one call that fills in masks, or candidates and a choice of them.

text, prompt ─▶ places ─┐
└─▶ denoiser ────┴─▶ logits ─▶ tokens ─▶ text with fewer masks, finished
"""

import torch
from torch import fx

from optimize.ir import unmask_rules as rules
from optimize.ir.distribution import draws
from optimize.ir.graph import Graph
from optimize.ir.recording import record
from optimize.ir.unmask import Unmasking
from optimize.ir.unmask_step import UnmaskStep


class UnmaskGraphs:
    """Makes the graphs of an unmask loop.

    Args:
        denoiser: `input_ids` [B, S] int64, and `timestep` [B] float32 of a model that looks at the
            time → `logits` [B, S, V].
        unmasking: the loop, and what passes made of it.
    """

    def __init__(self, denoiser: Graph, unmasking: Unmasking) -> None:
        self.denoiser, self.unmasking = denoiser, unmasking
        self.loop = unmasking.loop

    def step(self) -> Graph:
        """One call: masks are filled in with tokens drawn by themselves."""
        made = UnmaskStep(self.denoiser, self.unmasking)
        hitting = self.unmasking.first_hitting
        if hitting is not None and hitting.chosen_rows:
            made.fill_chosen_rows()
        elif hitting is not None:
            made.fill_places()
        else:
            made.fill_whole()
        return made.finished()

    def propose(self) -> Graph:
        """Candidates: whole texts, every mask drawn by itself, and their log-probabilities.

        Outputs: `candidates` [B * k, G], those of a sample one after another, and their
        `log_probabilities` [B * k, G] float64, 0 where nothing was masked.
        """
        resample = self.unmasking.resample
        assert resample is not None
        made = UnmaskStep(self.denoiser, self.unmasking)
        logits = made.logits()
        count, loop = resample.candidates, self.loop
        uniforms = made.noise("candidate_uniforms", (made.batch, count * loop.length))

        def propose(
            logits: torch.Tensor,
            text: torch.Tensor,
            uniforms: torch.Tensor,
            *sampling: torch.Tensor,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            assert loop.sampling is not None
            probabilities = rules.probabilities_of(logits, loop.sampling, *sampling)
            batch, length, _ = probabilities.shape
            each = uniforms.reshape(batch, count, length)
            tokens = draws(probabilities, each)
            masked = (text == loop.mask)[:, None]
            # [B, G, k] of the probabilities of what was drawn.
            taken = probabilities.gather(-1, tokens.transpose(1, 2)).transpose(1, 2)
            tiny = torch.finfo(torch.float64).tiny
            scores = torch.where(masked, torch.log(torch.clamp(taken, min=tiny)), 0.0)
            texts = torch.where(masked, tokens, text[:, None])
            return texts.flatten(0, 1), scores.flatten(0, 1)

        made.outputs = dict(
            zip(
                ("candidates", "log_probabilities"),
                record(
                    made.builder,
                    propose,
                    logits,
                    made.text,
                    uniforms,
                    *made.sampling(),
                ),
                strict=True,
            )
        )
        return made.builder.finish(made.outputs, made.dimensions)

    def choose(self, candidates: fx.Node, energy: fx.Node) -> Graph:
        """Keeps one candidate by its energy, and fills masks in from it.

        Args:
            candidates, energy: nodes of other graphs, for their shapes.
        """
        resample = self.unmasking.resample
        assert resample is not None
        made = UnmaskStep(self.denoiser, self.unmasking, prompt=False)
        texts = made.builder.input("candidates", candidates.meta["val"])
        energies = made.builder.input("energy", energy.meta["val"])
        uniforms = made.noise("choice_uniforms", (made.batch,))

        def choose(
            texts: torch.Tensor, energies: torch.Tensor, uniforms: torch.Tensor
        ) -> torch.Tensor:
            return rules.resampled(texts, energies, uniforms, resample.temperature)

        chosen = record(made.builder, choose, texts, energies, uniforms)
        made.fill_from(chosen)
        return made.finished()

"""The energy of an autoregressive model: how much likelier it finds a text than the denoiser does.

    E(x0, x_t) = log p(x0 | x_t) - log p_AR(x0)

so that p(x0 | x_t) exp(-E) is the autoregressive model's own distribution of what the masks hide,
given the tokens on both sides of them. No training.

Source: Xu et al. (2025), Energy-Based Diffusion Language Models (arXiv 2410.21357).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from optimize.ir.decoder_rows import with_prefix
from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.ir.recording import record
from optimize.passes.drafts.catalog import decoder_parameters
from optimize.passes.energies.energy_base import EnergyGraph, EnergyInputs, repeated

PREFIX = "energy."


@dataclass(frozen=True)
class AutoregressiveEnergy:
    """An autoregressive model that judges.

    Args:
        model: as of `DecodeLoop` programs, captured with a decoder.
        name: what it is called.
        start_token: put before a text that has no prompt, so that its first token is judged, too;
            None leaves the first token out of both probabilities.
        carry_over: only tokens that were masked count, not how well they explain the others.
    """

    model: Program
    name: str
    start_token: int | None = None
    carry_over: bool = False

    def declines(self, program: Program) -> str | None:
        assert program.unmasking is not None
        own, loop = self.model.decoding, program.unmasking.loop
        if self.model.decoder is None or own is None:
            return f"{self.name}: found a program that does not generate tokens"
        if own.image_tokens:
            return f"{self.name}: found a model that reads images, expected one of text alone"
        if own.vocabulary != program.unmasking.vocabulary:
            return (
                f"{self.name}: found a vocabulary of {own.vocabulary} tokens, expected "
                f"{program.unmasking.vocabulary} as the text has; an energy must share its "
                "tokenizer"
            )
        if self.start_token is not None and not 0 <= self.start_token < own.vocabulary:
            return f"start_token: found {self.start_token}, expected one in [0, {own.vocabulary})"
        needed = loop.length + loop.max_prompt + (self.start_token is not None)
        if own.capacity < needed:
            return (
                f"{self.name}: found a model captured for {own.capacity} tokens, expected "
                f"at least {needed}, those of prompt and text"
            )
        return None

    def graph(self, program: Program, candidates: int) -> EnergyGraph:
        decoder, own = self.model.decoder, self.model.decoding
        assert decoder is not None and own is not None
        made = EnergyInputs(program, candidates)
        mask_id, shift, start = made.loop.mask, own.position_shift, self.start_token

        def sequence(
            candidates: torch.Tensor, prompt: torch.Tensor | None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            parts = [candidates]
            if prompt is not None:
                each = candidates.shape[0] // prompt.shape[0]
                parts.insert(0, repeated(prompt, each))
            elif start is not None:
                parts.insert(0, torch.zeros_like(candidates[:, :1]) + start)
            whole = torch.cat(parts, 1) if len(parts) > 1 else candidates
            places = torch.arange(whole.shape[1], device=whole.device) + shift
            return whole, places.expand(whole.shape)

        tokens, positions = record(made.builder, sequence, made.candidates, made.prompt)
        prefixed = with_prefix(decoder, PREFIX)
        outputs = made.builder.inline(
            prefixed, {"input_ids": tokens, "positions": positions}, evaluate=True
        )
        first = 0 if made.prompt is not None or start is not None else 1

        def energy(
            logits: torch.Tensor,
            candidates: torch.Tensor,
            proposed: torch.Tensor,
            text: torch.Tensor,
        ) -> torch.Tensor:
            judged = candidates[:, first:]
            count, length = judged.shape[1], logits.shape[1]
            # Row i foretells token i + 1: those before each judged token.
            rows = logits[:, length - 1 - count : length - 1].float()
            scores = torch.log_softmax(rows, -1).gather(-1, judged[..., None])[..., 0].double()
            if self.carry_over:
                masked = repeated(text == mask_id, candidates.shape[0] // text.shape[0])
                scores = torch.where(masked[:, first:], scores, 0.0)
            return (proposed[:, first:] - scores).sum(-1)

        result = record(
            made.builder,
            energy,
            outputs["logits"],
            made.candidates,
            made.log_probabilities,
            made.text,
        )
        details = {"model": self.name, "parameters": decoder_parameters(self.model)}
        return EnergyGraph(made.finished(result), _weights(self.model, prefixed), details)


def _weights(model: Program, prefixed: Graph) -> Mapping[str, torch.Tensor]:
    return {name: model.weights[name[len(PREFIX) :]] for name in prefixed.weights.values()}

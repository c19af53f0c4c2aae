"""The energy of a head that noise contrastive estimation has fitted to a denoiser.

A head tells texts from what the denoiser draws for their masks; told at its best, its energy is

    E(x0, x_t) = log p(x0 | x_t) - log q(x0 | x_t)

with the denoiser's p and the texts' own q, so that p(x0 | x_t) exp(-E) is q. Candidates and their
masked text go through the trunk in one call.

Source: Xu et al. (2025), Energy-Based Diffusion Language Models (arXiv 2410.21357), EDLM-NCE.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from optimize.ir.program import Program
from optimize.ir.recording import record
from optimize.passes.energies.energy_base import EnergyGraph, EnergyInputs
from optimize.passes.energies.energy_head import TRUNK, energies, sequences, unsuitable
from optimize.passes.energies.energy_head_file import load_energy_head

PREFIX = "energy."


@dataclass(frozen=True)
class NoiseContrastiveEnergy:
    """A fitted head that judges.

    Args:
        path: of its weights, see `optimize.recipes.fit.energy_head`.
    """

    path: Path

    def declines(self, program: Program) -> str | None:
        reason = unsuitable(program)
        if reason is not None:
            return reason
        try:
            load_energy_head(self.path, program)
        except ValueError as error:
            return str(error)
        return None

    def graph(self, program: Program, candidates: int) -> EnergyGraph:
        head = load_energy_head(self.path, program)
        made = EnergyInputs(program, candidates)
        builder, mask_id = made.builder, made.loop.mask
        tokens = record(builder, sequences, made.candidates, made.text, made.prompt)
        own = {
            node: PREFIX + TRUNK + name if name in head.names else name
            for node, name in head.graph.weights.items()
        }
        trunk = replace(head.graph, weights=own)
        hidden = builder.inline(trunk, {"input_ids": tokens}, evaluate=True)["hidden"]
        layers = [
            builder.weight(PREFIX + name, builder.fake(value.shape, value.dtype))
            for name, value in head.layers().items()
        ]

        def energy(
            hidden: torch.Tensor,
            candidates: torch.Tensor,
            text: torch.Tensor,
            *layers: torch.Tensor,
        ) -> torch.Tensor:
            return energies(hidden, candidates, text == mask_id, *layers)

        result = record(builder, energy, hidden, made.candidates, made.text, *layers)
        weights = {PREFIX + name: value.detach() for name, value in head.tensors().items()}
        parameters = sum(value.numel() for value in weights.values())
        return EnergyGraph(made.finished(result), weights, {"parameters": parameters})

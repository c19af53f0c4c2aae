"""What gives candidates their energy: the graph of a call, and the weights that it adds.

    text [B, G], candidates [B * k, G], log_probabilities [B * k, G]  ─▶  energy [B * k]

`text` is what the candidates were drawn for, masks included; those of a sample stand one after
another. `log_probabilities` are those with which the denoiser drew the candidates' tokens, 0 where
nothing was masked. Candidates are kept with weights exp(-energy).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import fx

from optimize.capture.unmask_loop import ENERGY
from optimize.ir.builder import Builder, fake_mode_of
from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.ir.unmask import UnmaskLoop


@dataclass(frozen=True)
class EnergyGraph:
    """The graph of an energy, the weights that it adds, and facts for the report."""

    graph: Graph
    weights: Mapping[str, torch.Tensor]
    details: Mapping[str, Any] = field(default_factory=dict)


class Energy(Protocol):
    """Gives candidates their energy."""

    def declines(self, program: Program) -> str | None:
        """Why it cannot judge the texts of a program, or None."""

    def graph(self, program: Program, candidates: int) -> EnergyGraph:
        """The graph that judges so many candidates of each sample."""


class EnergyInputs:
    """The inputs of an energy's graph, in a builder that begins with them.

    Attributes:
        builder: of the graph.
        text, candidates, log_probabilities: see above.
        prompt: `input_ids` [B, P] of programs that take prompts; None of others.
    """

    def __init__(self, program: Program, count: int) -> None:
        denoiser, unmasking = program.decoder, program.unmasking
        assert denoiser is not None and unmasking is not None
        self._denoiser = denoiser
        self.loop: UnmaskLoop = unmasking.loop
        batch, rows = denoiser.node("input_ids").meta["val"].shape
        self.builder = Builder(fake_mode_of(denoiser))
        length = self.loop.length

        def made(name: str, shape: tuple[Any, ...], dtype: torch.dtype = torch.int64) -> fx.Node:
            return self.builder.input(name, self.builder.fake(shape, dtype))

        self.text = made("text", (batch, length))
        self.candidates = made("candidates", (count * batch, length))
        self.log_probabilities = made("log_probabilities", (count * batch, length), torch.float64)
        self.prompt = made("input_ids", (batch, rows)) if self.loop.max_prompt else None

    def finished(self, energy: fx.Node) -> Graph:
        """The graph with its output, float64 [B * k]."""
        names = {"batch": "batch"} | ({} if self.prompt is None else {"rows": "prompt"})
        dimensions = {
            names[name]: symbol
            for name, symbol in self._denoiser.dimensions.items()
            if name in names
        }
        return self.builder.finish({ENERGY: energy}, dimensions)


def repeated(rows: torch.Tensor, times: int | torch.SymInt) -> torch.Tensor:
    """[B, ...] as [B * times, ...], those of a sample one after another."""
    expanded = rows[:, None].expand(-1, times, *rows.shape[1:])
    return expanded.flatten(0, 1)

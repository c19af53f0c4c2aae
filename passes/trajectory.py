"""What a denoiser is given along a run: real latents at real noise levels, to try changes on."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from optimize.ir.graph import Graph
from optimize.ir.program import Program, denoising_repeat
from optimize.ir.torch_engine import TorchEngine
from optimize.passes.calibration import Request
from optimize.runtime.loop import Call

Inputs = dict[str, torch.Tensor]
"""Input name of the denoiser graph → tensor."""


def denoiser_inputs(program: Program, request: Request, moments: int) -> list[Inputs]:
    """The inputs of the "denoiser" graph at some steps, spread evenly over a run.

    Args:
        program: its loop calls the graph "denoiser".
        request: with its seed.
        moments: how many steps, >= 1; all steps where there are fewer.
    """
    repeat = denoising_repeat(program)
    calls = sum(
        isinstance(item, Call) and item.graph == "denoiser"
        for step in repeat.steps
        for item in repeat.bodies[step]
    )
    moments = min(moments, calls)
    wanted = {int((moment + 0.5) / moments * calls) for moment in range(moments)}
    fields = {name: value for name, value in request.items() if name != "seed"}
    run = program.prepared(fields, request["seed"])
    listener = _Listener(program.graphs, program.weights, wanted)
    run.engine = listener
    with suppress(_HeardAll):
        run.execute()
    return listener.heard


class _HeardAll(Exception):
    """Ends a run whose remaining steps nobody wants."""


class _Listener(TorchEngine):
    """Keeps the inputs of some calls of the denoiser."""

    def __init__(
        self, graphs: Mapping[str, Graph], weights: Mapping[str, torch.Tensor], wanted: set[int]
    ) -> None:
        super().__init__(graphs, weights)
        self.wanted = wanted
        self.heard: list[Inputs] = []
        self._calls = 0

    def run(
        self,
        graph: str,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor | None],
    ) -> dict[str, Any]:
        if graph == "denoiser":
            if self._calls in self.wanted:
                # The loop may overwrite its state.
                self.heard.append({name: item.clone() for name, item in inputs.items()})
            if len(self.heard) == len(self.wanted):
                raise _HeardAll
            self._calls += 1
        return super().run(graph, inputs, outputs)

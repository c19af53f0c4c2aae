"""Mean-reverting models in a program: the loop moves latent - mean, its last graph adds the mean.

    y = sampled(...)                ───▶    latent = y + mean

Source: Li et al. (2025), MaRS, section 4: in y the process is an ordinary diffusion.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from optimize.ir.builder import Builder, fake_mode_of
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.errors import InputModelError
from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.runtime.loop import Binding, Call, Destination

aten = torch.ops.aten


def check_mean(loop: DenoiseLoop, inputs: Mapping[str, Any]) -> None:
    """Refuses a mean that is no argument, or not of the latent's shape.

    Raises:
        InputModelError: found and expected.
    """
    if loop.mean is None:
        return
    mean, latent = inputs.get(loop.mean), inputs[loop.latent]
    if loop.mean in (loop.latent, loop.timestep) or not isinstance(mean, torch.Tensor):
        raise InputModelError(
            f"loop: found no tensor {loop.mean!r} besides latent and timestep among example_inputs "
            f"{sorted(inputs)}, expected the mean; name the argument with DenoiseLoop(mean=...)"
        )
    if mean.shape != latent.shape:
        raise InputModelError(
            f"loop: found mean {loop.mean!r} of shape {list(mean.shape)}, expected that of the "
            f"latent, {list(latent.shape)}"
        )


def with_mean(program: Program, name: str) -> Program:
    """The program with a last call that adds the mean, the request's field `name`."""
    call = Call(
        graph="mean",
        inputs={
            "latent": Binding(source="state", name="latent"),
            "mean": Binding(source="request", name=name),
        },
        outputs={"latent": Destination(state="latent")},
    )
    return replace(
        program,
        graphs={**program.graphs, "mean": _sum_graph(program.graphs["denoiser"], name)},
        loop=program.loop.model_copy(update={"body": (*program.loop.body, call)}),
    )


def _sum_graph(denoiser: Graph, name: str) -> Graph:
    """Adds the mean, in the dtype of the state."""
    builder = Builder(fake_mode_of(denoiser))
    value = denoiser.node("latent").meta["val"]
    latent = builder.input("latent", value)
    mean = builder.input("mean", denoiser.node(name).meta["val"])
    if mean.meta["val"].dtype != value.dtype:
        mean = builder.call(aten._to_copy.default, mean, dtype=value.dtype)
    return builder.finish(
        {"latent": builder.call(aten.add.Tensor, latent, mean)}, denoiser.dimensions
    )

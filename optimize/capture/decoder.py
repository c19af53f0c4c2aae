"""The VAE decoder of a pipeline as the last graph of its program."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from optimize.capture.check_model import check_finite
from optimize.capture.families import Family
from optimize.capture.from_denoiser import dimensions_of
from optimize.capture.from_module import evaluation_mode, trace
from optimize.capture.transformer_calls import Size
from optimize.ir.errors import InputModelError
from optimize.ir.program import Program
from optimize.runtime.loop import Binding, Call, Destination, Slot

LARGEST_BATCH = 63
"""From 64 samples on, the upsampling of diffusers takes another branch."""


class Decoder(nn.Module):
    """A latent of the sampling loop to pixels in [0, 1]."""

    def __init__(self, vae: nn.Module, family: Family, size: Size) -> None:
        super().__init__()
        self.vae = vae
        self.family = family
        self.size = size
        config: Any = vae.config
        factor = getattr(config, "scaling_factor", None)
        self.scale = 1.0 if factor is None else factor
        self.shift = (getattr(config, "shift_factor", None) or 0.0) if family.shift_factor else 0.0
        self.vae_latents_mean: torch.Tensor | None
        self.vae_latents_std: torch.Tensor | None
        mean = std = None
        if family.video and getattr(config, "latents_mean", None) and hasattr(config, "z_dim"):
            device = next(vae.parameters()).device
            mean = torch.tensor(config.latents_mean, device=device).view(1, -1, 1, 1, 1)
            std = torch.tensor(config.latents_std, device=device).view(1, -1, 1, 1, 1)
        self.register_buffer("vae_latents_mean", mean)
        self.register_buffer("vae_latents_std", std)
        self.training = vae.training

    def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor]:
        """[B, C, H, W] or [B, C, F, H, W] pixels, float32."""
        dtype = next(self.vae.parameters()).dtype
        latent = self._arranged(latent).to(dtype)
        mean, std = self.vae_latents_mean, self.vae_latents_std
        if mean is not None and std is not None:
            latent = latent * std.to(dtype) + mean.to(dtype)
        else:
            latent = latent / self.scale + self.shift
        decode: Any = self.vae.decode
        pixels = decode(latent, return_dict=False)[0]
        return ((pixels / 2 + 0.5).clamp(0, 1).float(),)

    def _arranged(self, latent: torch.Tensor) -> torch.Tensor:
        """The latent as the VAE takes it, channels first."""
        rows, columns = self.size.rows, self.size.columns
        if self.family.packed:
            parts = latent.reshape(-1, rows // 2, columns // 2, latent.shape[2] // 4, 2, 2)
            return parts.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        if self.family.frames_first:
            return latent.permute(0, 2, 1, 3, 4)
        return latent


def with_decoder(
    program: Program, pipeline: Any, family: Family, size: Size, batch: int
) -> Program:
    """The program with the VAE's decoder after the loop; a note says why where there is none.

    Args:
        batch: of the example.
    """
    vae = getattr(pipeline, "vae", None)
    if vae is None:
        return _noted(program, "the pipeline has no VAE: the program returns latents only")
    denoiser = program.graphs["denoiser"]
    value = denoiser.node("latent").meta["val"]
    example = torch.zeros(
        (batch, *(int(item) for item in value.shape[1:])),
        dtype=value.dtype,
        device=next(vae.parameters()).device,
    )
    name = "video" if family.video else "image"
    decoder = Decoder(vae, family, size)
    varies = bool(denoiser.dimensions)
    try:
        with evaluation_mode(decoder):
            traced = trace(
                decoder,
                {"latent": example},
                (name,),
                batch,
                None if varies else False,
                LARGEST_BATCH,
            )
    except InputModelError as error:
        kind = type(vae).__name__
        note = f"{kind} cannot be traced, the program returns latents only: {error}"
        return _noted(program, note)
    check_finite(traced.weights)
    graph = traced.graph
    made = graph.output_nodes()[name]
    limits = dict(program.signature.dimensions)
    notes = [f"decoder: {note}" for note in traced.notes]
    for dimension, (low, high) in limits.items():
        if graph.dimensions:
            limits[dimension] = (low, min(high, LARGEST_BATCH))
        else:
            limits[dimension] = (batch, batch)
    slot = Slot(name=name, dtype="float32", shape=dimensions_of(graph, made))
    call = Call(
        graph="decoder",
        inputs={"latent": Binding(source="state", name="latent")},
        outputs={name: Destination(state=name)},
    )
    loop = program.loop.model_copy(
        update={
            "slots": (*program.loop.slots, slot),
            "body": (*program.loop.body, call),
            "results": {**program.loop.results, name: name},
        }
    )
    signature = program.signature.model_copy(
        update={"dimensions": limits, "outputs": (*program.signature.outputs, name)}
    )
    return replace(
        program,
        graphs={**program.graphs, "decoder": graph},
        weights={**program.weights, **traced.weights},
        loop=loop,
        signature=signature,
        notes=(*program.notes, *notes),
    )


def _noted(program: Program, note: str) -> Program:
    return replace(program, notes=(*program.notes, note))

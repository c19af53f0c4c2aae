"""How pipelines call their transformers, and the constant tables they pass them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Tensors = Mapping[str, torch.Tensor]
Constants = Mapping[str, Any]
TransformerCall = Callable[[nn.Module, torch.Tensor, torch.Tensor, Tensors, Constants], Any]
"""(transformer, latent, timestep, conditioning, constants) → what the transformer returns."""


@dataclass(frozen=True)
class Size:
    """What is generated: pixels and frames, and the same in latent units."""

    height: int
    width: int
    frames: int
    rows: int
    columns: int
    latent_frames: int

    @property
    def pixels(self) -> str:
        return f"{self.frames} frames of {self.height}x{self.width}"


def call_plain(
    module: nn.Module,
    latent: torch.Tensor,
    time: torch.Tensor,
    given: Tensors,
    constants: Constants,
) -> Any:
    """Scheduler times and tensors as they are."""
    return module(hidden_states=latent, timestep=time, **given, return_dict=False)


def call_pixart(
    module: nn.Module,
    latent: torch.Tensor,
    time: torch.Tensor,
    given: Tensors,
    constants: Constants,
) -> Any:
    """PixArt, with the size as a condition where the transformer takes it."""
    batch = latent.shape[0]
    added = {
        name: constants[name].to(latent.dtype).expand(batch, -1) if name in constants else None
        for name in ("resolution", "aspect_ratio")
    }
    return module(latent, timestep=time, **given, added_cond_kwargs=added, return_dict=False)


def pixart_constants(pipeline: Any, size: Size) -> dict[str, Any]:
    """The size, for transformers of 1024 pixels."""
    if pipeline.transformer.config.sample_size != 128:
        return {}
    return {
        "resolution": torch.tensor([[float(size.height), float(size.width)]]),
        "aspect_ratio": torch.tensor([[size.height / size.width]]),
    }


def call_flux(
    module: nn.Module,
    latent: torch.Tensor,
    time: torch.Tensor,
    given: Tensors,
    constants: Constants,
) -> Any:
    """Flux: time in [0, 1], positions as arguments."""
    text = given["encoder_hidden_states"]
    ids = torch.zeros(text.shape[1], 3, dtype=latent.dtype, device=latent.device)
    image_ids = constants["img_ids"].to(latent.dtype)
    time = time.to(latent.dtype) / 1000
    return module(
        hidden_states=latent,
        timestep=time,
        **given,
        txt_ids=ids,
        img_ids=image_ids,
        return_dict=False,
    )


def flux_constants(pipeline: Any, size: Size) -> dict[str, Any]:
    """The positions of the packed latent's tokens."""
    rows = torch.arange(size.rows // 2)[:, None].expand(-1, size.columns // 2)
    columns = torch.arange(size.columns // 2)[None].expand(size.rows // 2, -1)
    ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1)
    return {"img_ids": ids.reshape(-1, 3).float()}


def call_lumina(
    module: nn.Module,
    latent: torch.Tensor,
    time: torch.Tensor,
    given: Tensors,
    constants: Constants,
) -> Any:
    """Lumina: time from noise to image, and the prediction's sign with it."""
    (prediction,) = module(
        hidden_states=latent,
        timestep=1 - time / constants["train_steps"],
        **given,
        image_rotary_emb=torch.view_as_complex(constants["image_rotary_emb"]),
        cross_attention_kwargs={"base_sequence_length": constants["base_sequence_length"]},
        return_dict=False,
    )
    return -prediction


def lumina_constants(pipeline: Any, size: Size) -> dict[str, Any]:
    """The rotary table of the size and what attention is scaled by."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    trained = pipeline.default_image_size
    rotary: Any = get_2d_rotary_pos_embed_lumina
    table = rotary(
        pipeline.transformer.head_dim,
        384,
        384,
        ntk_factor=1.0,
        linear_factor=(size.width * size.height / trained**2) ** 0.5,
    )
    patch = pipeline.transformer.config.patch_size
    used = table[: size.rows // patch, : size.columns // patch]
    return {
        "image_rotary_emb": torch.view_as_real(used).contiguous(),
        "base_sequence_length": (trained // 16) ** 2,
        "train_steps": pipeline.scheduler.config.num_train_timesteps,
    }


def call_cogvideox(
    module: nn.Module,
    latent: torch.Tensor,
    time: torch.Tensor,
    given: Tensors,
    constants: Constants,
) -> Any:
    """CogVideoX: rotary tables as an argument."""
    tables = tuple(constants[name] for name in ("cos", "sin") if name in constants) or None
    return module(
        hidden_states=latent, timestep=time, **given, image_rotary_emb=tables, return_dict=False
    )


def cogvideox_constants(pipeline: Any, size: Size) -> dict[str, Any]:
    """The rotary tables of the size."""
    if not pipeline.transformer.config.use_rotary_positional_embeddings:
        return {}
    cos, sin = pipeline._prepare_rotary_positional_embeddings(
        size.height, size.width, size.latent_frames, torch.device("cpu")
    )
    return {"cos": cos, "sin": sin}


def call_hunyuan(
    module: nn.Module,
    latent: torch.Tensor,
    time: torch.Tensor,
    given: Tensors,
    constants: Constants,
) -> Any:
    """HunyuanVideo: guidance in thousandths."""
    scaled = {"guidance": given["guidance"] * 1000.0} if "guidance" in given else {}
    return module(hidden_states=latent, timestep=time, **{**given, **scaled}, return_dict=False)

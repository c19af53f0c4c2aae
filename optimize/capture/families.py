"""What each family of diffusers pipelines does around its transformer.

A family says which latent and which conditioning a pipeline makes, and calls the transformer as the
pipeline's loop does: time scale, sign, constant tables. Conditioning keeps the names of the
transformer's arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from optimize.capture.scheduler import Sigmas
from optimize.capture.transformer_calls import (
    Size,
    TransformerCall,
    call_cogvideox,
    call_flux,
    call_hunyuan,
    call_lumina,
    call_pixart,
    call_plain,
    cogvideox_constants,
    flux_constants,
    lumina_constants,
    pixart_constants,
)
from optimize.ir.errors import InputModelError


@dataclass(frozen=True)
class Family:
    """One kind of pipeline.

    Attributes:
        pipelines: class names of the pipelines that run their loop this way.
        shape: (transformer configuration, size) → shape of one latent, without the batch.
        conditioning: (configuration, text length) → argument → shape of one sample.
        call: calls the transformer.
        constants: (pipeline, size) → tables and numbers that depend on the size only.
        steps, guidance_scale, text_length, size: the pipeline's defaults; size is (height, width,
            frames) in pixels, None for what the transformer was trained on.
        unconditional, null_values, guided_channels: as in `DenoiseLoop`.
        embedded_guidance: the request field of a guidance that the network itself takes.
        sigmas, shifts: who makes the sigmas; whether the shift follows the number of tokens.
        largest_shift: where a configuration has none.
        integers: configuration → the largest value of integer conditioning.
        packed: the latent is [B, tokens, 4 C], of 2x2 patches.
        frames_first: the latent is [B, F, C, H, W].
        shift_factor: whether the pipeline adds the VAE's shift factor before decoding.
    """

    pipelines: tuple[str, ...]
    shape: Callable[[Any, Size], tuple[int, ...]]
    conditioning: Callable[[Any, int], dict[str, tuple[int, ...]]]
    call: TransformerCall
    steps: int
    guidance_scale: float
    text_length: int
    constants: Callable[[Any, Size], dict[str, Any]] = lambda pipeline, size: {}
    size: tuple[int, int, int] | None = None
    video: bool = False
    unconditional: tuple[str, ...] = ()
    null_values: dict[str, float] = field(default_factory=dict)
    guided_channels: int | None = None
    embedded_guidance: str | None = None
    sigmas: Sigmas = "scheduler"
    shifts: bool = False
    largest_shift: float = 1.15
    integers: Callable[[Any], dict[str, int]] = lambda config: {}
    packed: bool = False
    frames_first: bool = False
    shift_factor: bool = False


def _image(config: Any, size: Size) -> tuple[int, ...]:
    return (config.in_channels, size.rows, size.columns)


def _video(config: Any, size: Size) -> tuple[int, ...]:
    return (config.in_channels, size.latent_frames, size.rows, size.columns)


def _flux_conditioning(config: Any, text: int) -> dict[str, tuple[int, ...]]:
    return {
        "encoder_hidden_states": (text, config.joint_attention_dim),
        "pooled_projections": (config.pooled_projection_dim,),
        **({"guidance": ()} if config.guidance_embeds else {}),
    }


FAMILIES: dict[str, Family] = {
    "DiTTransformer2DModel": Family(
        pipelines=("DiTPipeline",),
        shape=_image,
        conditioning=lambda config, text: {"class_labels": ()},
        call=call_plain,
        steps=50,
        guidance_scale=4.0,
        text_length=0,
        null_values={"class_labels": 1000},
        integers=lambda config: {"class_labels": config.num_embeds_ada_norm - 1},
    ),
    "PixArtTransformer2DModel": Family(
        pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
        shape=_image,
        conditioning=lambda config, text: {
            "encoder_hidden_states": (text, config.caption_channels),
            "encoder_attention_mask": (text,),
        },
        call=call_pixart,
        constants=pixart_constants,
        steps=20,
        guidance_scale=4.5,
        text_length=120,
        unconditional=("encoder_hidden_states", "encoder_attention_mask"),
    ),
    "SD3Transformer2DModel": Family(
        pipelines=("StableDiffusion3Pipeline",),
        shape=_image,
        conditioning=lambda config, text: {
            "encoder_hidden_states": (text, config.joint_attention_dim),
            "pooled_projections": (config.pooled_projection_dim,),
        },
        call=call_plain,
        steps=28,
        guidance_scale=7.0,
        text_length=333,
        unconditional=("encoder_hidden_states", "pooled_projections"),
        shifts=True,
        shift_factor=True,
        largest_shift=1.16,
    ),
    "FluxTransformer2DModel": Family(
        pipelines=("FluxPipeline",),
        shape=lambda config, size: (size.rows * size.columns // 4, config.in_channels),
        conditioning=_flux_conditioning,
        call=call_flux,
        constants=flux_constants,
        steps=28,
        guidance_scale=3.5,
        text_length=512,
        embedded_guidance="guidance",
        sigmas="uniform",
        shifts=True,
        shift_factor=True,
        packed=True,
    ),
    "LuminaNextDiT2DModel": Family(
        pipelines=("LuminaPipeline", "LuminaText2ImgPipeline"),
        shape=_image,
        conditioning=lambda config, text: {
            "encoder_hidden_states": (text, config.cross_attention_dim),
            "encoder_mask": (text,),
        },
        call=call_lumina,
        constants=lumina_constants,
        steps=30,
        guidance_scale=4.0,
        text_length=256,
        unconditional=("encoder_hidden_states", "encoder_mask"),
        guided_channels=3,
    ),
    "WanTransformer3DModel": Family(
        pipelines=("WanPipeline",),
        shape=_video,
        conditioning=lambda config, text: {"encoder_hidden_states": (text, config.text_dim)},
        call=call_plain,
        steps=50,
        guidance_scale=5.0,
        text_length=512,
        size=(480, 832, 81),
        video=True,
        unconditional=("encoder_hidden_states",),
    ),
    "CogVideoXTransformer3DModel": Family(
        pipelines=("CogVideoXPipeline",),
        shape=lambda config, size: (
            size.latent_frames,
            config.in_channels,
            size.rows,
            size.columns,
        ),
        conditioning=lambda config, text: {"encoder_hidden_states": (text, config.text_embed_dim)},
        call=call_cogvideox,
        constants=cogvideox_constants,
        steps=50,
        guidance_scale=6.0,
        text_length=226,
        video=True,
        unconditional=("encoder_hidden_states",),
        frames_first=True,
    ),
    "HunyuanVideoTransformer3DModel": Family(
        pipelines=("HunyuanVideoPipeline",),
        shape=_video,
        conditioning=lambda config, text: {
            "encoder_hidden_states": (text, config.text_embed_dim),
            "encoder_attention_mask": (text,),
            "pooled_projections": (config.pooled_projection_dim,),
            **({"guidance": ()} if config.guidance_embeds else {}),
        },
        call=call_hunyuan,
        steps=50,
        guidance_scale=6.0,
        text_length=256,
        size=(720, 1280, 129),
        video=True,
        embedded_guidance="guidance",
        sigmas="uniform",
    ),
}
"""Class name of the transformer → how its pipelines use it."""


def family_of(pipeline: Any) -> Family:
    """The family of a pipeline.

    Raises:
        InputModelError: no family; says which there are and how to capture the module alone.
    """
    kind = type(pipeline).__name__
    transformer = getattr(pipeline, "transformer", None)
    family = FAMILIES.get(type(transformer).__name__)
    if family is None or kind not in family.pipelines:
        known = sorted(name for item in FAMILIES.values() for name in item.pipelines)
        raise InputModelError(
            f"model: found pipeline {kind} with {type(transformer).__name__}, expected one of "
            f"{', '.join(known)}; capture its module alone with optimize(pipeline.transformer, "
            "example_inputs=..., loop=DenoiseLoop(...))"
        )
    return family

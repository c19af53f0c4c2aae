"""Tiny random pipelines of every family, with a request and the same call of the pipeline."""

from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import nn

from optimize.recipes.zoo.families import example

TEXT = 7
NO_TEXT = {"text_encoder": None, "tokenizer": None}
NO_SECOND = {"text_encoder_2": None, "tokenizer_2": None}
NO_THIRD = {"text_encoder_3": None, "tokenizer_3": None}


@dataclass
class Case:
    """A pipeline, how it is captured, and one request in both forms."""

    pipeline: Any
    latent: torch.Tensor
    sizes: dict[str, int]
    request: dict[str, torch.Tensor]
    call: dict[str, Any]
    outputs: tuple[str, ...] = field(default=("latent", "image"))


def case(name: str) -> Case:
    """The case of a family, always the same numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: Case = globals()[name]()
    made.pipeline.set_progress_bar_config(disable=True)
    return made


def random_weights(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=0.0 if parameter.ndim > 1 else 0.3, std=0.1)
    return module.eval()


def image_vae(layers: int = 2, **options: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * layers,
        down_block_types=("DownEncoderBlock2D",) * layers,
        up_block_types=("UpDecoderBlock2D",) * layers,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **{"scaling_factor": 0.7, **options},
    ).eval()


def embeddings() -> torch.Tensor:
    return torch.randn(2, TEXT, 12)


def mask(*lengths: int) -> torch.Tensor:
    return (torch.arange(TEXT)[None] < torch.tensor(lengths)[:, None]).float()


def dit() -> Case:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
        sample_size=8, patch_size=2, num_embeds_ada_norm=1000,
    )
    pipeline = diffusers.DiTPipeline(
        transformer=random_weights(transformer),
        vae=image_vae(),
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
    )
    # This pipeline takes no latents: it draws them first.
    generator = torch.Generator().manual_seed(7)
    latent = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    return Case(
        pipeline, latent, {}, {"class_labels": torch.tensor([3, 5])},
        {"class_labels": [3, 5], "generator": generator},
    )


def pixart() -> Case:
    pipeline = diffusers.PixArtAlphaPipeline(
        transformer=example("pixart").module,
        vae=image_vae(),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        **NO_TEXT,
    )
    text, other, seen, other_seen = embeddings(), embeddings(), mask(7, 5), mask(1, 1)
    return Case(
        pipeline,
        torch.randn(2, 4, 8, 12),
        {"height": 16, "width": 24, "text_length": TEXT},
        {
            "encoder_hidden_states": text,
            "negative_encoder_hidden_states": other,
            "encoder_attention_mask": seen,
            "negative_encoder_attention_mask": other_seen,
        },
        {
            "height": 16, "width": 24, "prompt_embeds": text, "negative_prompt_embeds": other,
            "prompt_attention_mask": seen, "negative_prompt_attention_mask": other_seen,
            "use_resolution_binning": False, "negative_prompt": None,
        },
    )


def sd3() -> Case:
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=example("sd3").module,
        vae=image_vae(shift_factor=0.1),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **NO_TEXT, **NO_SECOND, **NO_THIRD,
    )
    text, other = embeddings(), embeddings()
    pooled, other_pooled = torch.randn(2, 10), torch.randn(2, 10)
    return Case(
        pipeline,
        torch.randn(2, 4, 8, 12),
        {"height": 16, "width": 24, "text_length": TEXT},
        {
            "encoder_hidden_states": text,
            "negative_encoder_hidden_states": other,
            "pooled_projections": pooled,
            "negative_pooled_projections": other_pooled,
        },
        {
            "height": 16, "width": 24, "prompt_embeds": text, "negative_prompt_embeds": other,
            "pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": other_pooled,
        },
    )


def flux() -> Case:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=10,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )
    pipeline = diffusers.FluxPipeline(
        transformer=random_weights(transformer),
        vae=image_vae(shift_factor=0.2),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        **NO_TEXT, **NO_SECOND,
    )
    text, pooled = embeddings(), torch.randn(2, 10)
    return Case(
        pipeline,
        torch.randn(2, 24, 16),
        {"height": 16, "width": 24, "text_length": TEXT},
        {"encoder_hidden_states": text, "pooled_projections": pooled},
        {"height": 16, "width": 24, "prompt_embeds": text, "pooled_prompt_embeds": pooled},
    )


def lumina() -> Case:
    pipeline = diffusers.LuminaPipeline(
        transformer=example("lumina").module,
        vae=image_vae(4),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0),
        **NO_TEXT,
    )
    text, other, seen, other_seen = embeddings(), embeddings(), mask(7, 5), mask(2, 2)
    return Case(
        pipeline,
        torch.randn(2, 4, 8, 12),
        {"height": 64, "width": 96, "text_length": TEXT},
        {
            "encoder_hidden_states": text,
            "negative_encoder_hidden_states": other,
            "encoder_mask": seen,
            "negative_encoder_mask": other_seen,
        },
        {
            "height": 64, "width": 96, "prompt_embeds": text, "negative_prompt_embeds": other,
            "prompt_attention_mask": seen, "negative_prompt_attention_mask": other_seen,
        },
    )


def wan() -> Case:
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True],
        scale_factor_temporal=2, scale_factor_spatial=2,
        latents_mean=[0.1, 0.2, -0.3, 0.4], latents_std=[0.5, 1.0, 2.0, 1.5],
    )
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline = diffusers.WanPipeline(
        transformer=example("wan").module, vae=vae.eval(), scheduler=scheduler, **NO_TEXT
    )
    return _video_case(pipeline, torch.randn(2, 4, 2, 8, 16), {"text_length": TEXT})


def cogvideox() -> Case:
    vae = diffusers.AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, block_out_channels=(8, 8),
        down_block_types=("CogVideoXDownBlock3D",) * 2, up_block_types=("CogVideoXUpBlock3D",) * 2,
        latent_channels=4, layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=2,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    pipeline = diffusers.CogVideoXPipeline(
        transformer=example("cogvideox").module, vae=vae.eval(), scheduler=scheduler, **NO_TEXT
    )
    return _video_case(pipeline, torch.randn(2, 2, 4, 8, 16), {})


def _video_case(pipeline: Any, latent: torch.Tensor, sizes: dict[str, int]) -> Case:
    text, other = embeddings(), embeddings()
    return Case(
        pipeline,
        latent,
        {"height": 16, "width": 32, "frames": 3, **sizes},
        {"encoder_hidden_states": text, "negative_encoder_hidden_states": other},
        {
            "height": 16, "width": 32, "num_frames": 3,
            "prompt_embeds": text, "negative_prompt_embeds": other,
        },
        ("latent", "video"),
    )


def hunyuanvideo() -> Case:
    vae = diffusers.AutoencoderKLHunyuanVideo(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 8, 8),
        layers_per_block=1, norm_num_groups=4, scaling_factor=0.5,
    )
    pipeline = diffusers.HunyuanVideoPipeline(
        transformer=example("hunyuanvideo").module,
        vae=vae.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        **NO_TEXT, **NO_SECOND,
    )
    text, pooled, seen = embeddings(), torch.randn(2, 10), mask(7, 5)
    return Case(
        pipeline,
        torch.randn(2, 4, 1, 4, 6),
        {"height": 32, "width": 48, "frames": 1, "text_length": TEXT},
        {
            "encoder_hidden_states": text,
            "pooled_projections": pooled,
            "encoder_attention_mask": seen,
        },
        {
            "height": 32, "width": 48, "num_frames": 1, "prompt_embeds": text,
            "pooled_prompt_embeds": pooled, "prompt_attention_mask": seen,
        },
        ("latent", "video"),
    )

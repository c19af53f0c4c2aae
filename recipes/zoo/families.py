"""Small, randomly initialised members of the diffusers transformer families.

They are for tests and comparisons: same code paths as the published models, a few thousand weights,
non-square grids. Text embeddings, rotary tables and time arguments have the shapes the families'
pipelines make.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from optimize.ir.denoise import DenoiseLoop, Prediction

BATCH, TEXT = 2, 7


@dataclass(frozen=True)
class Example:
    """A module, inputs it runs on, and how it is sampled."""

    name: str
    module: nn.Module
    inputs: dict[str, Any]
    prediction: Prediction

    def loop(self, steps: int) -> DenoiseLoop:
        """The sampling loop with some number of steps."""
        return DenoiseLoop(prediction=self.prediction, steps=steps)

    def request(self) -> dict[str, torch.Tensor]:
        """The conditioning inputs under the names of a captured program's request."""
        fields: dict[str, torch.Tensor] = {}
        for name, item in self.inputs.items():
            if name in ("hidden_states", "timestep"):
                continue
            items = {name: item}
            if isinstance(item, tuple):
                items = {f"{name}_{i}": part for i, part in enumerate(item)}
            fields |= {
                key: part
                for key, part in items.items()
                if isinstance(part, torch.Tensor) and not part.is_complex()
            }
        return fields


def _text() -> torch.Tensor:
    return torch.randn(BATCH, TEXT, 12)


def _video(frames: int) -> torch.Tensor:
    return torch.randn(BATCH, 4, frames, 8, 12)


def _times(*times: float) -> torch.Tensor:
    return torch.tensor(times)


def dit() -> Example:
    """DiT: class labels, learned variance, square latents."""
    from diffusers import DiTTransformer2DModel

    module = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    inputs = {
        "hidden_states": torch.randn(BATCH, 4, 8, 8),
        "timestep": torch.tensor([3, 5]),
        "class_labels": torch.tensor([1, 2]),
    }
    return Example("dit", module, inputs, "epsilon")


def pixart() -> Example:
    """PixArt: cross-attention to masked text, learned variance."""
    from diffusers import PixArtTransformer2DModel

    module = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        caption_channels=12,
        cross_attention_dim=16,
        use_additional_conditions=False,
    )
    mask = torch.ones(BATCH, TEXT)
    mask[1, 5:] = 0
    inputs = {
        "hidden_states": torch.randn(BATCH, 4, 8, 8),
        "timestep": torch.tensor([3, 5]),
        "encoder_hidden_states": _text(),
        "encoder_attention_mask": mask,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return Example("pixart", module, inputs, "epsilon")


def sd3() -> Example:
    """Stable Diffusion 3: joint attention over image and text."""
    from diffusers import SD3Transformer2DModel

    module = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=12,
    )
    inputs = {
        "hidden_states": torch.randn(BATCH, 4, 8, 12),
        "timestep": _times(300.0, 500.0),
        "encoder_hidden_states": _text(),
        "pooled_projections": torch.randn(BATCH, 10),
    }
    return Example("sd3", module, inputs, "flow")


def flux() -> Example:
    """Flux: packed latents, rotary tables from ids, joint blocks then single blocks."""
    from diffusers import FluxTransformer2DModel

    module = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    inputs = {
        "hidden_states": torch.randn(BATCH, 24, 4),
        "timestep": _times(0.3, 0.5),
        "encoder_hidden_states": _text(),
        "pooled_projections": torch.randn(BATCH, 10),
        "img_ids": torch.randn(24, 3),
        "txt_ids": torch.zeros(TEXT, 3),
        "guidance": _times(3.5, 3.5),
    }
    return Example("flux", module, inputs, "flow")


def lumina() -> Example:
    """Lumina-Next: complex rotary table, grouped key-value heads, gated cross-attention."""
    from diffusers import LuminaNextDiT2DModel
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    module = LuminaNextDiT2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        ffn_dim_multiplier=None,
        norm_eps=1e-5,
        learn_sigma=True,
        qk_norm=True,
        cross_attention_dim=12,
    )
    inputs = {
        "hidden_states": torch.randn(BATCH, 4, 8, 12),
        "timestep": _times(0.3, 0.5),
        "encoder_hidden_states": _text(),
        "encoder_mask": torch.ones(BATCH, TEXT),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(16, 24, 24),
        "cross_attention_kwargs": {},
    }
    return Example("lumina", module, inputs, "flow")


def wan(frames: int = 2) -> Example:
    """Wan: video latents, rotary positions in three axes, cross-attention."""
    from diffusers import WanTransformer3DModel

    module = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    inputs = {
        "hidden_states": _video(frames),
        "timestep": torch.tensor([300, 500]),
        "encoder_hidden_states": _text(),
    }
    return Example("wan", module, inputs, "flow")


def cogvideox(frames: int = 2) -> Example:
    """CogVideoX: text and video in one sequence, rotary positions on the video part."""
    from diffusers import CogVideoXTransformer3DModel

    module = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=12,
        num_layers=2,
        sample_width=12,
        sample_height=8,
        sample_frames=4 * frames - 3,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=TEXT,
        use_rotary_positional_embeddings=True,
    )
    inputs = {
        "hidden_states": torch.randn(BATCH, frames, 4, 8, 12),
        "timestep": torch.tensor([300, 500]),
        "encoder_hidden_states": _text(),
        "image_rotary_emb": (torch.randn(24 * frames, 16), torch.randn(24 * frames, 16)),
    }
    return Example("cogvideox", module, inputs, "v")


def hunyuanvideo(frames: int = 2) -> Example:
    """HunyuanVideo: token refiner for the text, boolean mask over the joint sequence."""
    from diffusers import HunyuanVideoTransformer3DModel

    module = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=12,
        pooled_projection_dim=10,
        rope_axes_dim=(4, 4, 8),
    )
    mask = torch.ones(BATCH, TEXT)
    mask[1, 4:] = 0
    inputs = {
        "hidden_states": _video(frames),
        "timestep": torch.tensor([300, 500]),
        "encoder_hidden_states": _text(),
        "encoder_attention_mask": mask,
        "pooled_projections": torch.randn(BATCH, 10),
        "guidance": _times(3500.0, 3500.0),
    }
    return Example("hunyuanvideo", module, inputs, "flow")


FAMILIES: dict[str, Callable[..., Example]] = {
    make.__name__: make for make in (dit, pixart, sd3, flux, lumina, wan, cogvideox, hunyuanvideo)
}
"""Family name → a fresh example."""


def example(
    name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, frames: int | None = None
) -> Example:
    """A family's example with weights large enough that every part of it matters.

    Args:
        name: a key of `FAMILIES`.
        seed: of weights and inputs.
        dtype: float32 or float64, of weights and floating inputs.
        frames: latent frames of a video family; 2 by default.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = FAMILIES[name]() if frames is None else FAMILIES[name](frames=frames)
        for parameter in made.module.parameters():
            mean = 0.0 if parameter.ndim > 1 else 0.3
            nn.init.normal_(parameter, mean=mean, std=0.1)
    made.module.eval().to(dtype)
    return Example(name, made.module, _cast(made.inputs, dtype), made.prediction)


def _cast(item: Any, dtype: torch.dtype) -> Any:
    if isinstance(item, torch.Tensor) and item.is_complex():
        return item.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    if isinstance(item, torch.Tensor):
        return item.to(dtype) if item.is_floating_point() else item
    if isinstance(item, tuple):
        return tuple(_cast(part, dtype) for part in item)
    if isinstance(item, dict):
        return {key: _cast(part, dtype) for key, part in item.items()}
    return item

"""Small, randomly initialised members of the transformers language-model families.

They are for tests and comparisons: same code paths as the published models, a few thousand weights,
grouped keys where the family has them, images that are not square where it takes such.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

VOCABULARY = 96
IMAGE_TOKEN = 95
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class LanguageExample:
    """A model, and the image it takes.

    Attributes:
        name: key of `LANGUAGE_FAMILIES`.
        model: a transformers model with a language-modelling head.
        image_size: (height, width) in pixels; None for a text model.
        prefix: text tokens before the image.
    """

    name: str
    model: Any
    image_size: tuple[int, int] | None = None
    prefix: int = 0


def llama() -> LanguageExample:
    """Llama: rotary positions, grouped keys."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LanguageExample("llama", LlamaForCausalLM(LlamaConfig(**TEXT)))


def llava(layers: int = 2, **text: Any) -> LanguageExample:
    """LLaVA: CLIP tower without its last layer, two-layer projector, Llama.

    Args:
        layers: of the language model.
        text: more of its configuration.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=24,
        patch_size=6,
        projection_dim=16,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**{**TEXT, "num_hidden_layers": layers, **text}),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=16,
    )
    return LanguageExample("llava", LlavaForConditionalGeneration(config), (24, 24), 2)


def gpt2() -> LanguageExample:
    """GPT-2: learned absolute positions, fused projections."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=2, n_head=4, eos_token_id=2
    )
    return LanguageExample("gpt2", GPT2LMHeadModel(config))


def qwen2() -> LanguageExample:
    """Qwen2: biases on queries, keys and values; head tied to the embedding."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return LanguageExample("qwen2", Qwen2ForCausalLM(Qwen2Config(**TEXT, tie_word_embeddings=True)))


def qwen3() -> LanguageExample:
    """Qwen3: normalised queries and keys, heads wider than the hidden size has room for."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return LanguageExample("qwen3", Qwen3ForCausalLM(Qwen3Config(**TEXT, head_dim=16)))


def gemma() -> LanguageExample:
    """Gemma: scaled embedding, one key head, norms that add one."""
    from transformers import GemmaConfig, GemmaForCausalLM

    config = GemmaConfig(**{**TEXT, "num_key_value_heads": 1}, head_dim=8)
    return LanguageExample("gemma", GemmaForCausalLM(config))


def gemma2() -> LanguageExample:
    """Gemma 2 without soft-capped scores: a window in every other layer, soft-capped logits."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        **TEXT,
        head_dim=8,
        query_pre_attn_scalar=12,
        sliding_window=64,
        attn_logit_softcapping=None,
        final_logit_softcapping=2.0,
    )
    model = Gemma2ForCausalLM(config)
    # The family's default, for soft-capped scores, rounds probabilities to float32.
    model.config._attn_implementation = "sdpa"
    return LanguageExample("gemma2", model)


def gemma3() -> LanguageExample:
    """Gemma 3 text: two rotary tables, a window in all but the last layer."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        **TEXT,
        head_dim=8,
        query_pre_attn_scalar=12,
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"],
    )
    return LanguageExample("gemma3", Gemma3ForCausalLM(config))


def _siglip(**changes: int) -> Any:
    from transformers import SiglipVisionConfig

    sizes = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 24,
        "patch_size": 6,
    }
    return SiglipVisionConfig(**{**sizes, **changes})


def paligemma(layers: int = 2) -> LanguageExample:
    """PaliGemma: SigLIP tower, Gemma that sees image and prompt both ways, positions from one.

    Args:
        layers: of the language model.
    """
    from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration

    config = PaliGemmaConfig(
        vision_config=_siglip(projection_dim=32, num_image_tokens=16),
        text_config=GemmaConfig(
            **{**TEXT, "num_key_value_heads": 1, "num_hidden_layers": layers}, head_dim=8
        ),
        image_token_index=IMAGE_TOKEN,
        projection_dim=32,
        hidden_size=32,
    )
    return LanguageExample("paligemma", PaliGemmaForConditionalGeneration(config), (24, 24), 0)


def smolvlm() -> LanguageExample:
    """SmolVLM: SigLIP-like tower, four patches joined to a token, Llama."""
    from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

    config = SmolVLMConfig(
        vision_config=SmolVLMVisionConfig(**_siglip(image_size=36).to_dict()),
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
    )
    return LanguageExample("smolvlm", SmolVLMForConditionalGeneration(config), (36, 36), 3)


def idefics3() -> LanguageExample:
    """Idefics3: as SmolVLM."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

    config = Idefics3Config(
        vision_config=Idefics3VisionConfig(**_siglip().to_dict()),
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
    )
    return LanguageExample("idefics3", Idefics3ForConditionalGeneration(config), (24, 24), 1)


ROTARY = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


def qwen2_vl(layers: int = 2) -> LanguageExample:
    """Qwen2-VL: rotary tower, patches in blocks of four, positions in three axes.

    Args:
        layers: of the language model.
    """
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 24,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
        },
        text_config={**TEXT, "rope_parameters": ROTARY, "num_hidden_layers": layers},
        image_token_id=IMAGE_TOKEN,
        video_token_id=VOCABULARY - 2,
    )
    return LanguageExample("qwen2_vl", Qwen2VLForConditionalGeneration(config), (24, 32), 2)


def qwen2_5_vl() -> LanguageExample:
    """Qwen2.5-VL: as Qwen2-VL, with windows in the tower that do not divide its grid."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 24,
            "out_hidden_size": 32,
            "intermediate_size": 40,
            "num_heads": 2,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        text_config={**TEXT, "rope_parameters": ROTARY},
        image_token_id=IMAGE_TOKEN,
        video_token_id=VOCABULARY - 2,
    )
    return LanguageExample("qwen2_5_vl", Qwen2_5_VLForConditionalGeneration(config), (24, 32), 2)


LANGUAGE_FAMILIES: dict[str, Callable[[], LanguageExample]] = {
    make.__name__: make
    for make in (
        llama,
        gpt2,
        qwen2,
        qwen3,
        gemma,
        gemma2,
        gemma3,
        llava,
        paligemma,
        smolvlm,
        idefics3,
        qwen2_vl,
        qwen2_5_vl,
    )
}
"""Family name → a fresh member."""


def language_example(
    name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> LanguageExample:
    """A family's member with weights large enough that every part of it matters.

    Args:
        name: a key of `LANGUAGE_FAMILIES`.
        seed: of the weights.
        dtype: of the weights.
    """
    return drawn(LANGUAGE_FAMILIES[name], seed=seed, dtype=dtype)


def drawn(
    make: Callable[[], LanguageExample], *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> LanguageExample:
    """A member that `make` makes, with such weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = make()
        for key, parameter in made.model.named_parameters():
            norm = parameter.ndim == 1 and not key.endswith("bias")
            nn.init.normal_(parameter, mean=0.5 if norm else 0.0, std=0.1 if norm else 0.4)
    made.model.eval().to(dtype)
    return made


def reference_inputs(
    model: Any,
    input_ids: torch.Tensor,
    pixel_values: torch.Tensor | None = None,
    prefix: int = 0,
) -> dict[str, Any]:
    """Arguments of the library's own forward or `generate`, image placeholders and all.

    Args:
        model: a model of `LANGUAGE_FAMILIES`.
        input_ids: int64 [B, T], text only.
        pixel_values: [B, C, H, W], normalised; None for text alone.
        prefix: text tokens before the image.
    """
    given: dict[str, Any] = {}
    ids = input_ids
    if pixel_values is not None:
        given = _image_arguments(model, pixel_values)
        placeholders = torch.full((len(ids), given.pop("image_tokens")), IMAGE_TOKEN)
        ids = torch.cat([ids[:, :prefix], placeholders, ids[:, prefix:]], dim=1)
    if "image_grid_thw" in given:
        given["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int()
    # In PaliGemma zeros mark image and prompt, which see one another.
    if model.config.model_type == "paligemma":
        given["token_type_ids"] = torch.zeros_like(ids)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **given}


@torch.no_grad()
def reference_logits(
    model: Any,
    input_ids: torch.Tensor,
    pixel_values: torch.Tensor | None = None,
    prefix: int = 0,
) -> torch.Tensor:
    """Logits [B, S, V] of the library's own forward; arguments as of `reference_inputs`."""
    given = reference_inputs(model, input_ids, pixel_values, prefix)
    logits: torch.Tensor = model(**given, use_cache=False).logits
    return logits


def _image_arguments(model: Any, pixels: torch.Tensor) -> dict[str, Any]:
    """What a family's processor makes of normalised pixels, and how many tokens they are."""
    kind, vision = model.config.model_type, model.config.vision_config
    height, width = pixels.shape[-2:]
    patches = (height // vision.patch_size) * (width // vision.patch_size)
    if kind in ("qwen2_vl", "qwen2_5_vl"):
        return _qwen_arguments(vision, pixels)
    if kind in ("smolvlm", "idefics3"):
        tokens = patches // model.config.scale_factor**2
        return {"pixel_values": pixels[:, None], "image_tokens": tokens}
    return {"pixel_values": pixels, "image_tokens": patches}


def _qwen_arguments(vision: Any, pixels: torch.Tensor) -> dict[str, Any]:
    from transformers import Qwen2VLImageProcessor

    arrange = Qwen2VLImageProcessor(
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
    )
    made = arrange(
        images=list(pixels),
        do_resize=False,
        do_rescale=False,
        do_normalize=False,
        input_data_format="channels_first",
        return_tensors="pt",
    )
    grid = made["image_grid_thw"]
    tokens = int(grid[0].prod()) // vision.spatial_merge_size**2
    return {
        "pixel_values": made["pixel_values"],
        "image_grid_thw": grid,
        "image_tokens": tokens,
    }

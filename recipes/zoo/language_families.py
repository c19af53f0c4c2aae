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


def llava() -> LanguageExample:
    """LLaVA: CLIP tower without its last layer, two-layer projector, Llama."""
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
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=16,
    )
    return LanguageExample("llava", LlavaForConditionalGeneration(config), (24, 24), 2)


LANGUAGE_FAMILIES: dict[str, Callable[[], LanguageExample]] = {
    make.__name__: make for make in (llama, llava)
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
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = LANGUAGE_FAMILIES[name]()
        for parameter in made.model.parameters():
            spread, mean = (0.15, 0.0) if parameter.ndim > 1 else (0.1, 0.3)
            nn.init.normal_(parameter, mean=mean, std=spread)
    made.model.eval().to(dtype)
    return made


@torch.no_grad()
def reference_logits(
    model: Any,
    input_ids: torch.Tensor,
    pixel_values: torch.Tensor | None = None,
    prefix: int = 0,
) -> torch.Tensor:
    """Logits of the library's own forward, image placeholders and all.

    Args:
        model: a model of `LANGUAGE_FAMILIES`.
        input_ids: int64 [B, T], text only.
        pixel_values: [B, C, H, W], normalised; None for text alone.
        prefix: text tokens before the image.
    Returns:
        [B, S, V], S = T + image tokens.
    """
    if pixel_values is None:
        plain: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits
        return plain
    batch = input_ids.shape[0]
    given = _image_arguments(model, pixel_values)
    tokens = given.pop("image_tokens")
    placeholders = torch.full((batch, tokens), IMAGE_TOKEN)
    ids = torch.cat([input_ids[:, :prefix], placeholders, input_ids[:, prefix:]], dim=1)
    if "mm_token_type_ids" in given:
        given["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int()
    if "token_type_ids" in given:
        given["token_type_ids"] = torch.zeros_like(ids)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False, **given).logits
    return logits


def _image_arguments(model: Any, pixels: torch.Tensor) -> dict[str, Any]:
    """What a family's processor makes of normalised pixels, and how many tokens they are."""
    height, width = pixels.shape[-2:]
    patch = model.config.vision_config.patch_size
    return {"pixel_values": pixels, "image_tokens": (height // patch) * (width // patch)}

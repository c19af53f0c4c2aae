"""A tiny vision-language model with enough layers to prune between."""

from functools import cache

import torch
from torch import nn

from optimize.capture.from_decoder import Parts, capture_decoder
from optimize.capture.language_parts import parts_of
from optimize.ir.decode import DecodeLoop
from optimize.ir.program import Program

IMAGE = 48
PATCH = 6
GRID = (IMAGE // PATCH, IMAGE // PATCH)
LAYERS = 8
WIDTH, PERCEPTRON = 32, 48
KEY_WIDTH = 16
"""Of the keys of one layer, all groups together."""


@cache
def tiny_vlm(seed: int = 0) -> Program:
    """LLaVA of eight layers, an image of 8 x 8 tokens behind two tokens of text."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE,
        patch_size=PATCH,
        projection_dim=16,
    )
    text = LlamaConfig(
        vocab_size=96,
        hidden_size=WIDTH,
        intermediate_size=PERCEPTRON,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=95)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        for name, parameter in model.named_parameters():
            norm = parameter.ndim == 1 and not name.endswith("bias")
            nn.init.normal_(parameter, mean=0.5 if norm else 0.0, std=0.1 if norm else 0.2)
    parts = parts_of(model.eval(), prefix=2)
    shape = (3, IMAGE, IMAGE)
    loop = DecodeLoop(max_prompt=24, max_new_tokens=6)
    return capture_decoder(Parts(parts.decoder, parts.vision, shape), loop)

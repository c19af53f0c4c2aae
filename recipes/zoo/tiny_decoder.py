"""A small, randomly initialised decoder, with or without image, and decoding without any cache.

It is for tests: the simplest module that capture takes apart, with a few thousand weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu

VOCABULARY = 50


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.norm, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, groups * self.size)
        self.value = nn.Linear(width, groups * self.size)
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(
        self,
        hidden: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor] | None,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        normed = self.norm(hidden)

        def split(rows: torch.Tensor, heads: int) -> torch.Tensor:
            return rows.view(*rows.shape[:2], heads, self.size).transpose(1, 2)

        query = split(self.query(normed), self.heads)
        key = split(self.key(normed), self.groups)
        if tables is not None:
            query, key = _rotated(query, *tables), _rotated(key, *tables)
        attended = scaled_dot_product_attention(
            query, key, split(self.value(normed), self.groups), attn_mask=mask, enable_gqa=True
        )
        hidden = hidden + self.out(attended.transpose(1, 2).flatten(2))
        normed = self.norm2(hidden)
        result: torch.Tensor = hidden + self.down(silu(self.gate(normed)) * self.up(normed))
        return result


def _rotated(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = rows.shape[-1] // 2
    turned = torch.cat([-rows[..., half:], rows[..., :half]], -1)
    return rows * cos[:, None] + turned * sin[:, None]


class TinyDecoder(nn.Module):
    """Rotary or learned positions; an image behind the first `image_offset` tokens."""

    def __init__(
        self,
        layers: int = 4,
        width: int = 32,
        heads: int = 4,
        groups: int = 2,
        image_tokens: int = 0,
        image_offset: int = 0,
        attention: Literal["causal", "prefix"] = "causal",
        rotary: bool = True,
        shift: int = 0,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(_Block(width, heads, groups) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.places = None if rotary else nn.Embedding(256, width)
        size = width // heads
        self.register_buffer("frequencies", 100.0 ** (-torch.arange(0, size, 2) / size))
        self.image_tokens, self.image_offset = image_tokens, image_offset
        self.attention, self.position_shift = attention, shift
        self.max_positions, self.vocabulary = 256, VOCABULARY

    def prompt_positions(self, length: int) -> torch.Tensor:
        """[1, S]: consecutive."""
        return torch.arange(length + self.image_tokens)[None]

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        image_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [B, S, V]."""
        offset = self.image_offset
        if image_features is None:
            hidden = self.embed(input_ids)
        else:
            before, after = input_ids[:, :offset], input_ids[:, offset:]
            hidden = torch.cat([self.embed(before), image_features, self.embed(after)], 1)
        tables = None
        if self.places is None:
            frequencies = self.get_buffer("frequencies")
            angles = position_ids[:, :, None].to(hidden.dtype) * frequencies
            angles = torch.cat([angles, angles], -1)
            tables = angles.cos(), angles.sin()
        else:
            hidden = hidden + self.places(position_ids)
        for block in self.blocks:
            hidden = block(hidden, tables, attention_mask)
        logits: torch.Tensor = self.head(self.norm(hidden))
        return logits


class TinyVision(nn.Module):
    """Patches of 4 x 4 pixels, one token each, row after row."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, N, D] features of pixels [B, 3, H, W]."""
        features: torch.Tensor = self.patches(pixel_values).flatten(2).transpose(1, 2)
        return features


@dataclass(frozen=True)
class TinyModel:
    """A decoder, a vision module and the (C, H, W) of its images; None for text alone."""

    decoder: TinyDecoder
    vision: TinyVision | None
    image_shape: tuple[int, int, int] | None


def tiny_model(
    grid: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: Any,
) -> TinyModel:
    """A model with weights large enough that every part of it matters.

    Args:
        grid: rows and columns of image tokens; None for text alone.
        options: of `TinyDecoder`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if grid is not None:
            options = {"image_tokens": grid[0] * grid[1], "image_offset": 1, **options}
        decoder = TinyDecoder(**options)
        vision = None if grid is None else TinyVision(decoder.embed.weight.shape[1])
        for module in (decoder, vision):
            for parameter in [] if module is None else module.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.25)
    decoder.eval().to(dtype)
    shape = None if grid is None else (3, 4 * grid[0], 4 * grid[1])
    if vision is not None:
        vision.eval().to(dtype)
    return TinyModel(decoder, vision, shape)


def tiny_request(
    model: TinyModel, lengths: tuple[int, ...] = (9, 6), seed: int = 1
) -> dict[str, torch.Tensor]:
    """A request of prompts padded at their end."""
    generator = torch.Generator().manual_seed(seed)
    batch, longest = len(lengths), max(lengths)
    request = {
        "input_ids": torch.randint(3, VOCABULARY, (batch, longest), generator=generator),
        "lengths": torch.tensor(lengths),
    }
    if model.image_shape is not None:
        request["pixel_values"] = torch.randn(batch, *model.image_shape, generator=generator)
    return request


@torch.no_grad()
def plain_decoding(
    model: TinyModel, request: Mapping[str, torch.Tensor], count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens [B, count] and the logits of each, without any cache, sample by sample."""
    decoder = model.decoder
    tokens, logits = [], []
    for sample, length in enumerate(request["lengths"].tolist()):
        ids = request["input_ids"][sample : sample + 1, :length]
        features = {}
        if model.vision is not None:
            pixels = request["pixel_values"][sample : sample + 1]
            pixels = pixels.to(decoder.head.weight.dtype)
            features["image_features"] = model.vision(pixels)
        prompt_rows = length + decoder.image_tokens
        made = []
        for _ in range(count):
            rows = ids.shape[1] + decoder.image_tokens
            mask = torch.ones(rows, rows, dtype=torch.bool).tril()
            if decoder.attention == "prefix":
                mask[:prompt_rows, :prompt_rows] = True
            positions = decoder.prompt_positions(ids.shape[1])
            fresh = torch.arange(rows)[None] + decoder.position_shift
            positions = torch.where(torch.arange(rows) < prompt_rows, positions, fresh)
            last = decoder(ids, positions, mask[None, None], **features)[:, -1]
            made.append(last)
            ids = torch.cat([ids, last.argmax(-1)[:, None]], 1)
        tokens.append(ids[0, length:])
        logits.append(torch.cat(made))
    return torch.stack(tokens), torch.stack(logits)

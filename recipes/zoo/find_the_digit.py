"""A small vision-language model that says where a digit is and which digit is where: trained.

A convolutional stem turns a scene into 12 x 12 visual tokens; a rotary decoder reads them after a
BOS token and before the question, which attend to one another both ways, and answers in tokens.
The stem sees 7 pixels around a token, less than a digit: which digit a token belongs to is found in
the decoder. As in vision towers, a learned position of row and column is added to the tokens:
rotary attention alone weighs by position but moves none into what a token says.

Source: Su et al. (2021), rotary positions; Beyer et al. (2024), attention both ways over a prefix.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from optimize.recipes.zoo.find_the_digit_data import (
    ANSWER_TOKENS,
    NO_DIGIT,
    PROMPT_TOKENS,
    SCENE_SIZE,
    VOCABULARY,
)
from optimize.recipes.zoo.rotary_block import Block, rotary_frequencies
from optimize.recipes.zoo.weights import with_weights

WEIGHTS_PATH = Path(__file__).with_name("find_the_digit.safetensors")
WEIGHTS_SHA256 = "f925193dafb1d0663472694bfe02c3f58ac60d0d4cd36432412fcbba07ade53b"

TOKEN_SIZE = 4
"""Height and width of a visual token in pixels."""


def load_find_the_digit(path: Path = WEIGHTS_PATH) -> FindTheDigit:
    """Loads the trained model in evaluation mode.

    Args:
        path: the weights that come with `optimize`; their digest is checked.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not the one that this code was released with.
    """
    return with_weights(FindTheDigit(), path, WEIGHTS_SHA256)


class FindTheDigit(nn.Module):
    """The whole model.

    Args:
        dim: width of tokens, a multiple of twice `head_count`.
        block_count, head_count: of the decoder.
        hidden: width of its gated perceptrons.
    Attributes:
        vision: pixels to visual tokens.
        decoder: visual tokens and text to logits.
        image_shape: (C, H, W) of a picture.
        covering: names the digit that covers a visual token; for training only.
        asked: says whether the question is about a visual token; for training only.
    """

    def __init__(
        self, dim: int = 64, block_count: int = 16, head_count: int = 2, hidden: int = 160
    ) -> None:
        super().__init__()
        self.image_shape = (1, SCENE_SIZE, SCENE_SIZE)
        self.vision = Stem(dim, SCENE_SIZE // TOKEN_SIZE)
        self.decoder = RotaryDecoder(
            dim, block_count, head_count, hidden, image_tokens=self.vision.grid_size**2
        )
        self.covering = nn.Linear(dim, NO_DIGIT + 1)
        self.asked = nn.Linear(dim, 1)

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits [B, S, V] of images [B, 1, 48, 48] and text [B, T], prompt and answer so far."""
        features = self.vision(pixel_values)
        prompt = PROMPT_TOKENS + self.decoder.image_tokens
        total = input_ids.shape[1] + self.decoder.image_tokens
        mask = prefix_mask(len(input_ids), prompt, total)
        positions = self.decoder.prompt_positions(input_ids.shape[1]).expand(len(input_ids), -1)
        logits: torch.Tensor = self.decoder(input_ids, positions, mask, features)
        return logits


class Stem(nn.Module):
    """Two strided convolutions and one per token: pixels [B, 1, H, W] to tokens [B, N, dim]."""

    def __init__(self, dim: int, grid_size: int) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.fine = nn.Conv2d(1, dim // 2, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(dim, dim, 1)
        self.norm = nn.LayerNorm(dim)
        self.rows = nn.Parameter(torch.randn(1, grid_size, 1, dim) * 0.5)
        self.columns = nn.Parameter(torch.randn(1, 1, grid_size, dim) * 0.5)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        maps = self.mix(F.gelu(self.coarse(F.gelu(self.fine(pixel_values)))))
        tokens = self.norm(maps.flatten(2).transpose(1, 2))
        places = (self.rows + self.columns).flatten(1, 2)
        features: torch.Tensor = tokens + places
        return features


class RotaryDecoder(nn.Module):
    """A decoder-only transformer with rotary positions over text and one image.

    Args:
        dim, block_count, head_count, hidden: as in `FindTheDigit`.
        image_tokens: visual tokens of an image.
        theta: base of the rotary wavelengths.
    Attributes:
        image_offset: text tokens before the image.
        image_tokens: visual tokens of an image.
        attention: the image and the prompt attend to one another both ways.
        max_positions: rows of the longest sequence.
        window: none; attention is global.
        vocabulary: tokens of the text.
        position_shift: position of a generated token less its row.
    """

    image_offset: int = 1
    attention: str = "prefix"
    window: int | None = None
    vocabulary: int = VOCABULARY
    position_shift: int = 0

    def __init__(
        self,
        dim: int,
        block_count: int,
        head_count: int,
        hidden: int,
        image_tokens: int,
        theta: float = 10000.0,
    ) -> None:
        super().__init__()
        if dim % (2 * head_count):
            raise ValueError(
                f"RotaryDecoder: found dim {dim}, expected a multiple of twice head_count "
                f"{head_count}; change one of them."
            )
        self.image_tokens = image_tokens
        self.max_positions = image_tokens + PROMPT_TOKENS + ANSWER_TOKENS
        self.embed = nn.Embedding(VOCABULARY, dim)
        self.blocks = nn.ModuleList(Block(dim, head_count, hidden) for _ in range(block_count))
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, VOCABULARY, bias=False)
        frequencies = rotary_frequencies(dim // head_count, theta)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.frequencies: torch.Tensor

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        image_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of the next token after each row.

        Args:
            input_ids: [B, T], int64, text only.
            position_ids: [B, S], int64.
            attention_mask: [B, 1, S, S], bool, True where a row may attend.
            image_features: [B, N, dim]; they stand after `image_offset` text tokens.
        Returns:
            [B, S, V], float32; S = T + N with an image, T without.
        """
        rows = self.layers(input_ids, position_ids, attention_mask, image_features)[-1]
        logits: torch.Tensor = self.head(self.norm(rows))
        return logits

    def layers(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        image_features: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """What goes into the first block and what comes out of each, [B, S, dim]."""
        rows = self.embed(input_ids)
        if image_features is not None:
            before, after = rows[:, : self.image_offset], rows[:, self.image_offset :]
            rows = torch.cat([before, image_features.to(rows.dtype), after], dim=1)
        angles = position_ids[:, None, :, None] * self.frequencies  # [B, 1, S, head_dim / 2]
        turn = (angles.cos(), angles.sin())
        states = [rows]
        for block in self.blocks:
            states.append(block(states[-1], turn, attention_mask))
        return states

    def prompt_positions(self, length: int) -> torch.Tensor:
        """Positions of a prompt of `length` text tokens and the image, [1, S], int64."""
        return torch.arange(length + self.image_tokens)[None]


def prefix_mask(batch: int, prompt: int, total: int) -> torch.Tensor:
    """Rows of the prompt attend to all of it, later ones also to those before, [B, 1, S, S], bool.

    Args:
        batch: B.
        prompt: rows of image and prompt together.
        total: S, at least `prompt`.
    """
    mask = torch.ones(total, total, dtype=torch.bool).tril()
    mask[:prompt, :prompt] = True
    return mask.expand(batch, 1, total, total)

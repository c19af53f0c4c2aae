"""A small diffusion transformer that draws handwritten digits: trained, class-conditional, 32x32.

The model is a flow-matching DiT: of `latent = (1 - sigma) * clean + sigma * noise` it predicts the
velocity `noise - clean`, so a solver integrates d latent / d sigma from sigma 1 to 0.

Source: Peebles and Xie (2023), section 3.2; Lipman et al. (2023), equation 22.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from optimize.recipes.zoo.weights import with_weights

WEIGHTS_PATH = Path(__file__).with_name("digits_dit.safetensors")
WEIGHTS_SHA256 = "110a572b1a4de4020ece09eb28ec564a9283547aad3af3e7021ca27e240a51a0"


def load_digits_dit(path: Path = WEIGHTS_PATH) -> DigitsDiT:
    """Loads the trained model in evaluation mode.

    Args:
        path: the weights that come with `optimize`; their digest is checked.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not the one that this code was released with.
    """
    return with_weights(DigitsDiT(), path, WEIGHTS_SHA256)


class TimestepEmbedding(nn.Module):
    """Embeds timesteps in [0, 1000] by sines and cosines and a two-layer perceptron."""

    def __init__(self, dim: int, frequency_count: int = 64) -> None:
        super().__init__()
        exponent = torch.arange(frequency_count, dtype=torch.float32) / frequency_count
        self.frequencies: torch.Tensor
        self.register_buffer("frequencies", torch.exp(-math.log(10000.0) * exponent), False)
        self.linear_in = nn.Linear(2 * frequency_count, dim)
        self.linear_out = nn.Linear(dim, dim)

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        angle = timestep[:, None] * self.frequencies
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1)
        embedding: torch.Tensor = self.linear_out(F.silu(self.linear_in(waves)))
        return embedding


class Attention(nn.Module):
    """Self-attention over all tokens, with normalized queries and keys."""

    def __init__(self, dim: int, head_count: int) -> None:
        super().__init__()
        self.head_count, self.head_dim = head_count, dim // head_count
        self.to_query = nn.Linear(dim, dim)
        self.to_key = nn.Linear(dim, dim)
        self.to_value = nn.Linear(dim, dim)
        self.to_output = nn.Linear(dim, dim)
        self.norm_query = nn.RMSNorm(self.head_dim, eps=1e-6)
        self.norm_key = nn.RMSNorm(self.head_dim, eps=1e-6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        query = self.norm_query(self._split_heads(self.to_query(tokens)))
        key = self.norm_key(self._split_heads(self.to_key(tokens)))
        value = self._split_heads(self.to_value(tokens))
        mixed = F.scaled_dot_product_attention(query, key, value)  # [B, N, S, D]
        output: torch.Tensor = self.to_output(mixed.transpose(1, 2).flatten(2))
        return output

    def _split_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, length, _ = tokens.shape
        return tokens.reshape(batch, length, self.head_count, self.head_dim).transpose(1, 2)


class Block(nn.Module):
    """Attention and a perceptron, each shifted, scaled and gated by the condition (AdaLN-zero)."""

    def __init__(self, dim: int, head_count: int, expansion: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(dim, 6 * dim)
        self.norm_attention = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(dim, head_count)
        self.norm_perceptron = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.linear_in = nn.Linear(dim, expansion * dim)
        self.linear_out = nn.Linear(expansion * dim, dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift_a, scale_a, gate_a, shift_p, scale_p, gate_p = (
            self.modulation(condition).unsqueeze(1).chunk(6, dim=-1)
        )
        modulated = self.norm_attention(tokens) * (1 + scale_a) + shift_a
        tokens = tokens + gate_a * self.attention(modulated)
        modulated = self.norm_perceptron(tokens) * (1 + scale_p) + shift_p
        hidden = F.gelu(self.linear_in(modulated), approximate="tanh")
        output: torch.Tensor = tokens + gate_p * self.linear_out(hidden)
        return output


class PatchDiT(nn.Module, ABC):
    """Predicts the flow velocity of noisy pictures or clips, patch by patch.

    A subclass gives the patch embedding and the positions, and joins patches again.

    Args:
        patch_embedding: turns a latent into tokens [B, C, ...].
        positions: added to the tokens, [1, S, C].
        patch_size: height and width of one token in pixels.
        block_count: transformer blocks.
        head_count: attention heads.
        expansion: hidden width of the perceptron in units of the token width.
        class_count: classes; the label `class_count` itself is the null label.
    """

    def __init__(
        self,
        patch_embedding: nn.Module,
        positions: torch.Tensor,
        patch_size: int,
        block_count: int,
        head_count: int,
        expansion: int,
        class_count: int,
    ) -> None:
        super().__init__()
        dim = positions.shape[-1]
        self.patch_size = patch_size
        self.patch_embedding = patch_embedding
        self.timestep_embedding = TimestepEmbedding(dim)
        self.class_embedding = nn.Embedding(class_count + 1, dim)
        self.blocks = nn.ModuleList(Block(dim, head_count, expansion) for _ in range(block_count))
        self.modulation = nn.Linear(dim, 2 * dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.to_patch = nn.Linear(dim, patch_size * patch_size)
        self.positions: torch.Tensor
        self.register_buffer("positions", positions, False)
        for layer in (self.modulation, self.to_patch):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor
    ) -> torch.Tensor:
        """Predicts `noise - clean` for each noisy sample.

        Args:
            hidden_states: [B, 1, ..., H, W], float32, the latent at `timestep`.
            timestep: [B], float32, in [0, 1000], 1000 times sigma.
            class_labels: [B], int64, in [0, 10]; 10 draws any digit (the null label).
        Returns:
            The velocity, shape and dtype of `hidden_states`.
        """
        tokens = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2)  # [B, S, C]
        tokens = tokens + self.positions
        condition = F.silu(self.timestep_embedding(timestep) + self.class_embedding(class_labels))
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.modulation(condition).unsqueeze(1).chunk(2, dim=-1)
        patches = self.to_patch(self.norm(tokens) * (1 + scale) + shift)
        return self.join_patches(patches)

    @abstractmethod
    def join_patches(self, patches: torch.Tensor) -> torch.Tensor:
        """The samples whose patches, [B, S, patch_size**2], these are."""


class DigitsDiT(PatchDiT):
    """Predicts the flow velocity of a noisy digit, [B, 1, H, W].

    Args:
        image_size: height and width in pixels, a multiple of `patch_size`.
        patch_size: height and width of one token in pixels.
        dim: token width, a multiple of 4 and of `head_count`.
        block_count, head_count, expansion, class_count: as in `PatchDiT`.
    Raises:
        ValueError: a size does not divide as required.
    """

    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 2,
        dim: int = 96,
        block_count: int = 4,
        head_count: int = 3,
        expansion: int = 4,
        class_count: int = 10,
    ) -> None:
        if image_size % patch_size or dim % 4 or dim % head_count:
            raise ValueError(
                f"DigitsDiT: found image_size {image_size} and dim {dim}, expected multiples of "
                f"patch_size {patch_size} and of 4 and head_count {head_count}; change them."
            )
        grid = image_size // patch_size
        super().__init__(
            nn.Conv2d(1, dim, patch_size, stride=patch_size),
            position_table(grid, dim),
            patch_size,
            block_count,
            head_count,
            expansion,
            class_count,
        )
        self.grid_size = grid

    def join_patches(self, patches: torch.Tensor) -> torch.Tensor:
        grid, patch = self.grid_size, self.patch_size
        pixels = patches.reshape(-1, grid, grid, patch, patch).permute(0, 1, 3, 2, 4)
        return pixels.reshape(-1, 1, grid * patch, grid * patch)


def position_table(grid_size: int, dim: int) -> torch.Tensor:
    """Sines and cosines of row and column, [1, grid_size**2, dim], float32; `dim` divides by 4."""
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(dim // 4) / (dim // 4))
    angle = torch.arange(grid_size)[:, None] * frequencies
    waves = torch.cat([angle.sin(), angle.cos()], dim=-1)  # [grid, dim / 2]
    rows = waves[:, None, :].expand(-1, grid_size, -1)
    columns = waves[None, :, :].expand(grid_size, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(1, grid_size * grid_size, dim)

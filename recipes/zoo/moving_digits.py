"""A small video diffusion transformer that draws clips of moving digits of a class: trained.

A flow-matching DiT like `digits_dit`, with attention over the tokens of all frames: 8 frames of
8 x 8 tokens, frame after frame. Of `latent = (1 - sigma) * clean + sigma * noise` it predicts the
velocity `noise - clean`.

Source: Peebles and Xie (2023), section 3.2; Lipman et al. (2023), equation 22.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from optimize.recipes.zoo.digits_dit import PatchDiT
from optimize.recipes.zoo.moving_digits_data import FRAME_SIZE, FRAMES
from optimize.recipes.zoo.weights import with_weights

WEIGHTS_PATH = Path(__file__).with_name("moving_digits.safetensors")
WEIGHTS_SHA256 = "7387ac0d09f13af2ab68c68fbb37547517b59f3e2d746e8d642454de57abc32f"


def load_moving_digits(path: Path = WEIGHTS_PATH) -> MovingDigitsDiT:
    """Loads the trained model in evaluation mode.

    Args:
        path: the weights that come with `optimize`; their digest is checked.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not the one that this code was released with.
    """
    return with_weights(MovingDigitsDiT(), path, WEIGHTS_SHA256)


class MovingDigitsDiT(PatchDiT):
    """Predicts the flow velocity of a noisy clip, [B, 1, F, H, W].

    Args:
        frames: frames of a clip.
        frame_size: height and width of a frame in pixels, a multiple of `patch_size`.
        patch_size: height and width of one token in pixels; a token is of one frame.
        dim: token width, a multiple of 6 and of `head_count`.
        block_count, head_count, expansion, class_count: as in `PatchDiT`.
    Raises:
        ValueError: a size does not divide as required.
    """

    def __init__(
        self,
        frames: int = FRAMES,
        frame_size: int = FRAME_SIZE,
        patch_size: int = 2,
        dim: int = 96,
        block_count: int = 4,
        head_count: int = 3,
        expansion: int = 4,
        class_count: int = 10,
    ) -> None:
        if frame_size % patch_size or dim % 6 or dim % head_count:
            raise ValueError(
                f"MovingDigitsDiT: found frame_size {frame_size} and dim {dim}, expected multiples "
                f"of patch_size {patch_size} and of 6 and head_count {head_count}; change them."
            )
        grid, patch = frame_size // patch_size, (1, patch_size, patch_size)
        super().__init__(
            nn.Conv3d(1, dim, patch, stride=patch),
            position_table((frames, grid, grid), dim),
            patch_size,
            block_count,
            head_count,
            expansion,
            class_count,
        )
        self.frames, self.grid_size = frames, grid

    def join_patches(self, patches: torch.Tensor) -> torch.Tensor:
        grid, patch = self.grid_size, self.patch_size
        pixels = patches.reshape(-1, self.frames, grid, grid, patch, patch)
        pixels = pixels.permute(0, 1, 2, 4, 3, 5)
        return pixels.reshape(-1, 1, self.frames, grid * patch, grid * patch)


def position_table(sizes: tuple[int, int, int], dim: int) -> torch.Tensor:
    """Sines and cosines of frame, row and column, [1, F * H * W, dim], float32; 6 divides `dim`."""
    count = dim // 6
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(count) / count)
    waves = []
    for axis, size in enumerate(sizes):
        angle = torch.arange(size)[:, None] * frequencies
        wave = torch.cat([angle.sin(), angle.cos()], dim=-1)  # [size, dim / 3]
        shape = [1, 1, 1, 2 * count]
        shape[axis] = size
        waves.append(wave.reshape(shape).expand(*sizes, -1))
    return torch.cat(waves, dim=-1).reshape(1, math.prod(sizes), dim)

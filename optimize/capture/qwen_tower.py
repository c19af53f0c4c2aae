"""The vision towers of Qwen2-VL and Qwen2.5-VL for images of one size.

The library packs the patches of all images into one sequence, in blocks of the patches that become
one token, and splits it where images or windows end. Here images are a batch, and a window is a
mask that lets patches attend within it; patches stay in the same order from pixels to tokens.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class QwenTower(nn.Module):
    """Pixels to features, with the tower's own layers.

    Args:
        tower: `model.visual` of Qwen2-VL or Qwen2.5-VL.
        size: height and width in pixels, multiples of patch times merge size.
    """

    angles: torch.Tensor
    windows: torch.Tensor

    def __init__(self, tower: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.tower = tower
        config = tower.config
        self.patch = int(config.patch_size)
        self.merge = int(config.spatial_merge_size)
        self.frames = int(config.temporal_patch_size)
        self.rows, self.columns = (side // (self.patch * self.merge) for side in size)
        rows, columns = self._patch_coordinates()
        frequencies = tower.rotary_pos_emb.inv_freq.float()
        pair = torch.stack([rows, columns], dim=1).to(frequencies.device).float()
        angles = (pair[:, :, None] * frequencies).flatten(1)
        self.register_buffer("angles", angles.repeat(1, 2), persistent=False)
        side = getattr(config, "window_size", self.patch * self.merge * max(size))
        side = side // (self.patch * self.merge)
        across = -(-self.columns // side)
        windows = rows // self.merge // side * across + columns // self.merge // side
        self.register_buffer("windows", windows.to(frequencies.device), persistent=False)
        whole = getattr(config, "fullatt_block_indexes", None)
        count = len(tower.blocks)
        self.windowed = [whole is not None and layer not in whole for layer in range(count)]

    def _patch_coordinates(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of each patch: tokens row by row, the patches of a token together."""
        shape = (self.rows, self.merge, self.columns, self.merge)
        high, wide = self.rows * self.merge, self.columns * self.merge
        rows = torch.arange(high)[:, None].expand(high, wide)
        columns = torch.arange(wide).expand(high, wide)
        first, second = (item.reshape(shape).transpose(1, 2).flatten() for item in (rows, columns))
        return first, second

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image features [B, rows x columns, D] of `pixel_values` [B, C, H, W]."""
        tower: Any = self.tower
        weight = tower.patch_embed.proj.weight
        patches = self._patches(pixel_values).to(weight.dtype)
        # A convolution whose kernel is the whole patch.
        hidden = functional.linear(patches, weight.flatten(1), tower.patch_embed.proj.bias)
        within = (self.windows[:, None] == self.windows)[None, None]
        for block, windowed in zip(tower.blocks, self.windowed, strict=True):
            mask = within if windowed else None
            hidden = hidden + self._attention(block.attn, block.norm1(hidden), mask)
            hidden = hidden + block.mlp(block.norm2(hidden))
        merged = tower.merger.ln_q(hidden)
        merged = merged.reshape(-1, self.rows * self.columns, self.merge**2 * merged.shape[-1])
        features: torch.Tensor = tower.merger.mlp(merged)
        return features

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Patches [B, P, C x frames x patch x patch]; the frames of an image are copies of it."""
        batch, channels = pixels.shape[:2]
        blocks = pixels.reshape(
            batch, channels, self.rows, self.merge, self.patch, self.columns, self.merge, self.patch
        )
        blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
        shape = list(blocks.shape)
        shape[6] = self.frames
        count = self.rows * self.columns * self.merge**2
        return blocks.expand(shape).reshape(batch, count, channels * self.frames * self.patch**2)

    def _attention(
        self, attention: Any, hidden: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        batch, count, _ = hidden.shape
        heads = attention.qkv(hidden).reshape(batch, count, 3, attention.num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = self._rotated(query), self._rotated(key)
        out = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=attention.scaling
        )
        out = out.transpose(1, 2).reshape(batch, count, -1)
        projected: torch.Tensor = attention.proj(out)
        return projected

    def _rotated(self, heads: torch.Tensor) -> torch.Tensor:
        """Rotary positions, in float32 as in the library; heads [B, N, P, D]."""
        wide = heads.float()
        first, second = wide.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return (wide * self.angles.cos() + turned * self.angles.sin()).to(heads.dtype)

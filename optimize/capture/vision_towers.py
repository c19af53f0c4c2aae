"""Vision towers of transformers models as modules from pixels to a row-major grid of features.

Each takes `pixel_values` [B, C, H, W] of one size, resized and normalised, and returns
[B, N, D], N = rows x columns. Index tables that the library computes from a grid at every call are
constants here.
"""

from typing import Any

import torch
from torch import nn

from optimize.capture.masked_attention import configurations, masked_attention


class SelectedLayers(nn.Module):
    """Hidden states of some layers of a tower, projected: LLaVA.

    Args:
        tower: a CLIP or SigLIP vision model.
        projector: features → the language model's width.
        layers: one layer, or several whose states are joined in the last dimension.
        skip_first: whether a class token stands before the patches.
    """

    def __init__(
        self, tower: nn.Module, projector: nn.Module, layers: int | list[int], skip_first: bool
    ) -> None:
        super().__init__()
        self.tower = tower
        self.projector = projector
        self.layers = [layers] if isinstance(layers, int) else list(layers)
        self.skip_first = skip_first
        self.configs = configurations(tower)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image features [B, N, D] of `pixel_values` [B, C, H, W]."""
        with masked_attention(self.configs):
            out: Any = self.tower(pixel_values, output_hidden_states=True, return_dict=True)
        states = [out.hidden_states[layer] for layer in self.layers]
        if self.skip_first:
            states = [state[:, 1:] for state in states]
        features: torch.Tensor = self.projector(torch.cat(states, dim=-1))
        return features


class WholeImage(nn.Module):
    """The model's own image features: PaliGemma."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_tower
        self.projector = model.multi_modal_projector
        self.configs = configurations(self.tower)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image features [B, N, D] of `pixel_values` [B, C, H, W]."""
        with masked_attention(self.configs):
            out: Any = self.tower(pixel_values, return_dict=True)
        features: torch.Tensor = self.projector(out.last_hidden_state)
        return features


class FullTile(nn.Module):
    """One tile without padding: SmolVLM and Idefics3.

    Args:
        tower: the vision model, whose positions depend on which patches are padding.
        connector: joins neighbouring patches to tokens.
        size: height and width of the tile.
    """

    positions: torch.Tensor

    def __init__(self, tower: Any, connector: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.tower = tower
        self.connector = connector
        self.configs = configurations(tower)
        self.register_buffer("positions", tile_positions(tower, size), persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image features [B, N, D] of `pixel_values` [B, C, H, W]."""
        tower: Any = self.tower
        embeddings = tower.embeddings
        pixels = pixel_values.to(embeddings.patch_embedding.weight.dtype)
        rows = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        rows = rows + embeddings.position_embedding(self.positions)
        with masked_attention(self.configs):
            out = tower.encoder(inputs_embeds=rows, attention_mask=None)
        features: torch.Tensor = self.connector(tower.post_layernorm(out.last_hidden_state))
        return features


@torch.no_grad()
def tile_positions(tower: Any, size: tuple[int, int]) -> torch.Tensor:
    """Positions int64 [1, P] that the tower's embeddings look up for a tile without padding."""
    embeddings = tower.embeddings
    weight = embeddings.patch_embedding.weight
    patch = int(embeddings.patch_size)
    pixels = torch.zeros(1, weight.shape[1], *size, dtype=weight.dtype, device=weight.device)
    shape = (1, size[0] // patch, size[1] // patch)
    found: list[torch.Tensor] = []
    hook = embeddings.position_embedding.register_forward_pre_hook(
        lambda module, given: found.append(given[0])
    )
    try:
        embeddings(
            pixel_values=pixels,
            patch_attention_mask=torch.ones(shape, dtype=torch.bool, device=weight.device),
        )
    finally:
        hook.remove()
    return found[0]

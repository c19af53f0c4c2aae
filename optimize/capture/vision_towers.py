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
        self.training = tower.training

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image features [B, N, D] of `pixel_values` [B, C, H, W]."""
        with masked_attention(self.configs):
            out: Any = self.tower(pixel_values, output_hidden_states=True, return_dict=True)
        states = [out.hidden_states[layer] for layer in self.layers]
        if self.skip_first:
            states = [state[:, 1:] for state in states]
        features: torch.Tensor = self.projector(torch.cat(states, dim=-1))
        return features

"""The block that the zoo's rotary decoders are made of: attention and a gated perceptron.

Source: Su et al. (2021), rotary positions; Touvron et al. (2023), the block of Llama.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Turn = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine of the angles of every row, [B, 1, S, head_dim / 2]."""


class Block(nn.Module):
    """Attention and a gated perceptron, each after an RMS norm and added to its input.

    Args:
        dim: width of rows, a multiple of twice `head_count`.
        head_count: attention heads.
        hidden: width of the gated perceptron.
    Attributes:
        attend: what attends; training may exchange it for `plain_attention`.
    """

    def __init__(self, dim: int, head_count: int, hidden: int) -> None:
        super().__init__()
        self.head_count, self.head_dim = head_count, dim // head_count
        self.attend: Callable[..., torch.Tensor] = F.scaled_dot_product_attention
        self.input_norm = nn.RMSNorm(dim, eps=1e-6)
        self.to_query = nn.Linear(dim, dim, bias=False)
        self.to_key = nn.Linear(dim, dim, bias=False)
        self.to_value = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.hidden_norm = nn.RMSNorm(dim, eps=1e-6)
        self.to_gate = nn.Linear(dim, hidden, bias=False)
        self.to_hidden = nn.Linear(dim, hidden, bias=False)
        self.from_hidden = nn.Linear(hidden, dim, bias=False)

    def forward(self, rows: torch.Tensor, turn: Turn, mask: torch.Tensor | None) -> torch.Tensor:
        """Rows [B, S, dim] to rows; `mask` [B, 1, S, S] is True where a row may attend."""
        normed = self.input_norm(rows)
        query = rotated(self.heads(self.to_query(normed)), turn)
        key = rotated(self.heads(self.to_key(normed)), turn)
        value = self.heads(self.to_value(normed))
        mixed = self.attend(query, key, value, attn_mask=mask)
        rows = rows + self.to_out(mixed.transpose(1, 2).flatten(2))
        normed = self.hidden_norm(rows)
        gated = F.silu(self.to_gate(normed)) * self.to_hidden(normed)
        added: torch.Tensor = rows + self.from_hidden(gated)
        return added

    def heads(self, rows: torch.Tensor) -> torch.Tensor:
        """[B, S, dim] as [B, heads, S, head_dim]."""
        return rows.reshape(*rows.shape[:2], self.head_count, self.head_dim).transpose(1, 2)


def start_small(embed: nn.Embedding, blocks: nn.ModuleList) -> None:
    """Initial weights for deep models: every block starts as the identity, embeddings are small."""
    nn.init.normal_(embed.weight, std=0.2)
    for block in blocks:
        assert isinstance(block, Block)
        nn.init.zeros_(block.to_out.weight)
        nn.init.zeros_(block.from_hidden.weight)


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention in plain operations, whose compiled backward is twice as fast on a CPU."""
    scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    mixed: torch.Tensor = scores.softmax(-1).to(query.dtype) @ value
    return mixed


def rotated(heads: torch.Tensor, turn: Turn) -> torch.Tensor:
    """Turns pairs (i, i + head_dim / 2) of [B, heads, S, head_dim] by the angles of their row."""
    cos, sin = (part.to(heads.dtype) for part in turn)
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotary_frequencies(head_dim: int, theta: float) -> torch.Tensor:
    """Angles per position of the pairs of a head, [head_dim / 2], float32."""
    return theta ** -(torch.arange(0, head_dim, 2) / head_dim)

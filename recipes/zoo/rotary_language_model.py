"""A language model of Llama's shape: text in, logits of the next token out.

Blocks of attention and a gated perceptron with RMS norms and rotary positions, no biases, an output
matrix of its own. `as_llama` is the same model in `transformers`.

Source: Touvron et al. (2023), Llama.
"""

from __future__ import annotations

import torch
from torch import nn

from optimize.recipes.zoo.rotary_block import Block, rotary_frequencies


class RotaryLanguageModel(nn.Module):
    """A decoder-only transformer over text.

    Args:
        vocabulary: tokens of the text.
        dim: width of rows, a multiple of twice `head_count`.
        block_count, head_count: blocks, and attention heads of each.
        hidden: width of the gated perceptrons.
        max_positions: rows of the longest sequence.
        theta: base of the rotary wavelengths.
    Attributes:
        image_offset, image_tokens: 0, there is no image.
        attention: each row attends to itself and to those before.
        window: none; attention is global.
        position_shift: position of a generated token less its row.
    Raises:
        ValueError: `dim` does not divide into heads of an even width.
    """

    image_offset: int = 0
    image_tokens: int = 0
    attention: str = "causal"
    window: int | None = None
    position_shift: int = 0

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        block_count: int,
        head_count: int,
        hidden: int,
        max_positions: int,
        theta: float = 10000.0,
    ) -> None:
        super().__init__()
        if dim % (2 * head_count):
            raise ValueError(
                f"RotaryLanguageModel: found dim {dim}, expected a multiple of twice head_count "
                f"{head_count}; change one of them."
            )
        self.vocabulary, self.max_positions = vocabulary, max_positions
        self.head_count, self.hidden, self.theta = head_count, hidden, theta
        self.embed = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(Block(dim, head_count, hidden) for _ in range(block_count))
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, vocabulary, bias=False)
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
            input_ids: [B, S], int64.
            position_ids: [B, S], int64.
            attention_mask: [B, 1, S, S], bool, True where a row may attend.
            image_features: there are none.
        Returns:
            [B, S, V], float32.
        """
        if image_features is not None:
            raise ValueError("RotaryLanguageModel: found image_features, expected text only.")
        rows = self.embed(input_ids)
        angles = position_ids[:, None, :, None] * self.frequencies  # [B, 1, S, head_dim / 2]
        turn = (angles.cos(), angles.sin())
        for block in self.blocks:
            rows = block(rows, turn, attention_mask)
        logits: torch.Tensor = self.head(self.norm(rows))
        return logits

    def prompt_positions(self, length: int) -> torch.Tensor:
        """Positions of a prompt of `length` tokens, [1, S], int64."""
        return torch.arange(length)[None]

    def next_token_logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits [B, S, V] after each token of texts [B, S] of one length."""
        length = input_ids.shape[1]
        positions = self.prompt_positions(length)
        mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        logits: torch.Tensor = self(input_ids, positions, mask)
        return logits

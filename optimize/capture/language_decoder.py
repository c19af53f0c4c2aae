"""A transformers language model as a decoder without a cache: positions and mask are inputs."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from optimize.capture.masked_attention import configurations, masked_attention

Attention = Literal["causal", "prefix"]


@dataclass(frozen=True)
class Positions:
    """How a family counts positions.

    Attributes:
        first: position of the first row.
        grid: (rows, columns) of an image whose tokens have a position per axis; positions then are
            [3, B, S] (time, row, column), and the text after an image goes on behind its larger
            side. None where every row counts one.
    """

    first: int = 0
    grid: tuple[int, int] | None = None
    axes: int = 1

    def prompt(self, length: int, offset: int, tokens: int) -> torch.Tensor:
        """Positions of a prompt.

        Args:
            length: text tokens; may be symbolic.
            offset: text tokens before the image.
            tokens: of the image; 0 for text alone.
        Returns:
            int64 [1, S] or [3, 1, S], S = length + tokens.
        """
        if self.axes == 1:
            return torch.arange(self.first, length + tokens + self.first)[None]
        if not tokens or self.grid is None:
            return torch.arange(length).expand(self.axes, 1, length)
        rows, columns = self.grid
        before = torch.arange(offset).expand(self.axes, offset)
        after = torch.arange(length - offset) + (offset + max(rows, columns))
        image = torch.stack(
            [
                torch.zeros(rows * columns, dtype=torch.int64),
                torch.arange(rows)[:, None].expand(rows, columns).reshape(-1),
                torch.arange(columns).expand(rows, columns).reshape(-1),
            ]
        )
        whole = torch.cat([before, image + offset, after.expand(self.axes, length - offset)], dim=1)
        return whole[:, None]

    def shift(self, tokens: int) -> int:
        """Position of a generated token minus its row in the unpruned sequence."""
        if self.grid is None or not tokens:
            return self.first
        return self.first + max(self.grid) - tokens


class LanguageDecoder(nn.Module):
    """Text and image features in, logits out; the model's own modules do the work.

    Attributes:
        image_offset: text tokens before the image.
        image_tokens: tokens of the image; 0 for a text model.
        attention: "prefix" if image and prompt attend to one another both ways.
        max_positions: the largest sequence, in tokens.
        window: the smallest sliding window of a layer; None without windows. No sequence is longer
            than it, since layers with a window get the same mask as the others.
        vocabulary: number of logits.
        position_shift: position of a generated token minus its row in the unpruned sequence.
    """

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module | None,
        *,
        positions: Positions,
        vocabulary: int,
        max_positions: int,
        window: int | None = None,
        attention: Attention = "causal",
        image_offset: int = 0,
        image_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.positions = positions
        self.vocabulary = vocabulary
        self.max_positions = max_positions
        self.window = window
        self.attention: Attention = attention
        self.image_offset = image_offset
        self.image_tokens = image_tokens
        self.position_shift = positions.shift(image_tokens)
        self.configs = configurations(model)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        image_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of every row.

        Args:
            input_ids: int64 [B, T], text without image placeholders.
            position_ids: int64 [B, S], or [3, B, S] for positions in three axes.
            attention_mask: bool [B, 1, S, S], True where a row may attend.
            image_features: [B, N, D], put between the first `image_offset` text tokens and the
                others; S = T + N, or T without them.
        Returns:
            [B, S, V].
        """
        model: Any = self.model
        rows: torch.Tensor = model.get_input_embeddings()(input_ids)
        if image_features is not None:
            at = self.image_offset
            rows = torch.cat([rows[:, :at], image_features.to(rows.dtype), rows[:, at:]], dim=1)
        with masked_attention(self.configs):
            out = model(
                inputs_embeds=rows,
                position_ids=position_ids,
                attention_mask=attention_mask,
                use_cache=False,
            )
        if self.head is None:
            logits: torch.Tensor = out.logits
            return logits
        logits = self.head(out.last_hidden_state)
        return logits

    def prompt_positions(self, length: int, image: bool = True) -> torch.Tensor:
        """Positions of a prompt of `length` text tokens, with the image if the model takes one.

        Args:
            length: at least `image_offset`; may be symbolic.
            image: False for a prompt without one.
        Returns:
            int64 [1, S], or [3, 1, S] for positions in three axes.
        """
        tokens = self.image_tokens if image else 0
        return self.positions.prompt(length, self.image_offset, tokens)

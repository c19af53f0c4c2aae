"""A masked-diffusion language model: text with masks in, logits of what the masks hide out.

The blocks of `RotaryLanguageModel`, but every row attends to every other, and a row foretells its
own token. It takes no time: how many tokens are masked says all that a time would.

Source: Zheng et al. (2025), Masked Diffusion Models are Secretly Time-Agnostic Masked Models.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from optimize.recipes.zoo.rotary_block import Block, rotary_frequencies


class MaskedLanguageModel(nn.Module):
    """A bidirectional transformer over text with masks.

    Args:
        vocabulary: tokens of the text; the mask is the token of this number.
        dim: width of rows, a multiple of twice `head_count`.
        block_count, head_count: blocks, and attention heads of each.
        hidden: width of the gated perceptrons.
        theta: base of the rotary wavelengths.
    Raises:
        ValueError: `dim` does not divide into heads of an even width.
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        block_count: int,
        head_count: int,
        hidden: int,
        theta: float = 10000.0,
    ) -> None:
        super().__init__()
        if dim % (2 * head_count):
            raise ValueError(
                f"MaskedLanguageModel: found dim {dim}, expected a multiple of twice head_count "
                f"{head_count}; change one of them."
            )
        self.vocabulary, self.mask_id = vocabulary, vocabulary
        self.embed = nn.Embedding(vocabulary + 1, dim)
        self.blocks = nn.ModuleList(Block(dim, head_count, hidden) for _ in range(block_count))
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        frequencies = rotary_frequencies(dim // head_count, theta)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.frequencies: torch.Tensor

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits of the tokens of a text, those that masks hide above all.

        Args:
            input_ids: [B, L], int64, in [0, V]; V is the mask.
        Returns:
            [B, L, V], float32.
        """
        rows = self.embed(input_ids)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        angles = positions[None, None, :, None] * self.frequencies  # [1, 1, L, head_dim / 2]
        turn = (angles.cos(), angles.sin())
        for block in self.blocks:
            rows = block(rows, turn, None)
        logits: torch.Tensor = self.head(self.norm(rows))
        return logits


def masked_text_loss(
    model: MaskedLanguageModel,
    texts: torch.Tensor,
    counts: torch.Tensor,
    generator: torch.Generator,
    first: int = 0,
    bfloat16: bool = False,
) -> torch.Tensor:
    """The bound on the negative log-likelihood of a token, in nats, a scalar.

    It is the mean over texts of the mean cross-entropy of what is masked: with counts uniform from
    1 to n, the time-free form of the bound for any schedule, by token.

    Args:
        model: of whom.
        texts: [B, L], int64, without masks.
        counts: [B], int64, how many tokens of each text are masked, at least 1.
        generator: chooses which.
        first: only tokens from here on are masked; those before are a prompt.
        bfloat16: in bfloat16 autocast.
    """
    order = torch.rand(texts.shape[0], texts.shape[1] - first, generator=generator).argsort(-1)
    hidden = F.pad(order.argsort(-1) < counts[:, None], (first, 0))
    with torch.autocast("cpu", torch.bfloat16, bfloat16):
        logits = model(texts.masked_fill(hidden, model.mask_id))
    losses = F.cross_entropy(logits.float().flatten(0, 1), texts.flatten(), reduction="none")
    means = (losses.view_as(hidden) * hidden).sum(-1) / counts
    return means.mean()

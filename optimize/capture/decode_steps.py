"""The two phases of generating tokens as modules around a decoder, before caches are put in.

Both end with the choice of a token, so a call of a graph is one token of the answer.
"""

import math
from typing import Any, Protocol

import torch
from torch import nn

from optimize.ir.decode import PROMPT_POSITIONS, DecodeLoop, Sampling
from optimize.ir.distribution import distribution, pick
from optimize.kernels.gather_rows import gather_rows

ROWS_OUTPUTS = ("logits",)
STEP_OUTPUTS = ("token", "tokens", "rows", "remaining", "finished")
"""The token is both the next step's input and part of the result."""
PROMPT_OUTPUTS = (*STEP_OUTPUTS, "logits")


class Decoder(Protocol):
    """What capture asks of a decoder, an `nn.Module` without a key-value cache.

    `decoder(input_ids, position_ids, attention_mask, image_features=None)` returns logits
    [B, S, V]. Image features stand in the sequence behind the first `image_offset` text tokens. The
    mask, bool [B, 1, S, S], reaches every `scaled_dot_product_attention` as it is.

    Attributes:
        image_offset, image_tokens: where the image stands in the sequence, and its rows.
        attention: "causal" or "prefix", of the rows of a prompt.
        max_positions: most rows of a sequence.
        position_shift: a generated token at row s has position s + position_shift.
        vocabulary: tokens are in [0, vocabulary).
    """

    image_offset: int
    image_tokens: int
    attention: Any
    max_positions: int
    position_shift: int
    vocabulary: int

    def prompt_positions(self, length: int) -> torch.Tensor:
        """The positions of a prompt of that many text tokens, [1, S] or [axes, 1, S]."""
        ...

    def __call__(self, **arguments: torch.Tensor) -> torch.Tensor: ...


class PromptStep(nn.Module):
    """Prefill: the whole prompt at once, and the first token of the answer."""

    def __init__(self, decoder: Decoder, loop: DecodeLoop) -> None:
        super().__init__()
        self.module = decoder
        self.choose = Choice(loop)
        # The positions of a shorter prompt are the first of these. One more than there can be, as
        # taking all of them would be a special case for tracing.
        positions = decoder.prompt_positions(loop.max_prompt + 1)
        self.register_buffer(PROMPT_POSITIONS, positions, persistent=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        lengths: torch.Tensor,
        max_new_tokens: torch.Tensor,
        attention_mask: torch.Tensor,
        image_features: torch.Tensor | None = None,
        **sampling: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """See `PROMPT_OUTPUTS`; `attention_mask` [B, 1, 1, 1] only marks what the mask is."""
        batch, length = input_ids.shape
        decoder: Any = self.module
        image_rows = decoder.image_tokens if image_features is not None else 0
        rows = length + image_rows
        positions = getattr(self, PROMPT_POSITIONS)[..., :rows]
        positions = positions.expand(*positions.shape[:-2], batch, rows)
        given = {} if image_features is None else {"image_features": image_features}
        # 0 stands for prompts without padding.
        text = torch.where(lengths > 0, lengths, length)
        used = text + image_rows
        if decoder.attention == "prefix":
            # The padding is no key of any row.
            keys = torch.arange(rows, device=used.device) < used[:, None]
            attention_mask = torch.logical_and(attention_mask, keys[:, None, None, :])
        logits = decoder(
            input_ids=input_ids,
            position_ids=positions,
            attention_mask=attention_mask.expand(batch, 1, rows, rows),
            **given,
        )
        last = gather_rows(logits, (used - 1)[:, None], 1)[:, 0]
        token = self.choose(last, **sampling)
        remaining = max_new_tokens - 1
        finished = self.choose.stops(token) | (remaining <= 0)
        return token, token, used, remaining, finished, last


class TokenStep(nn.Module):
    """Decode: the last token goes in, the next one comes out."""

    def __init__(self, decoder: Decoder, loop: DecodeLoop, position_axes: tuple[int, ...]) -> None:
        super().__init__()
        self.module = decoder
        self.choose = Choice(loop)
        self.position_axes = position_axes

    def forward(
        self,
        token: torch.Tensor,
        rows: torch.Tensor,
        remaining: torch.Tensor,
        finished: torch.Tensor,
        attention_mask: torch.Tensor,
        **sampling: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """See `STEP_OUTPUTS`; `rows` [B] counts those before this token."""
        decoder: Any = self.module
        batch = token.shape[0]
        positions = (rows + decoder.position_shift)[:, None].expand(*self.position_axes, batch, 1)
        logits = decoder(
            input_ids=token[:, None], position_ids=positions, attention_mask=attention_mask
        )
        chosen = self.choose(logits[:, 0], **sampling)
        chosen = torch.where(finished, self.choose.pad_token, chosen)
        remaining = remaining - 1
        finished = finished | self.choose.stops(chosen) | (remaining <= 0)
        return chosen, chosen, rows + 1, remaining, finished


class Rows(nn.Module):
    """The decoder over rows of one sequence, each seeing those before it and itself."""

    def __init__(self, decoder: Decoder, position_axes: tuple[int, ...]) -> None:
        super().__init__()
        self.module = decoder
        self.position_axes = position_axes

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor]:
        """Tokens and their positions [B, S] → logits [B, S, V]; the mask is a mark."""
        decoder: Any = self.module
        batch, rows = input_ids.shape
        logits = decoder(
            input_ids=input_ids,
            position_ids=positions.expand(*self.position_axes, batch, rows),
            attention_mask=attention_mask.expand(batch, 1, rows, rows),
        )
        return (logits,)


class Choice(nn.Module):
    """Chooses a token from logits: the likeliest, or one drawn."""

    def __init__(self, loop: DecodeLoop) -> None:
        super().__init__()
        self.sampling = loop.sampling
        self.stop_tokens = loop.stop_tokens or ()
        self.pad_token = loop.pad_token or 0

    def stops(self, token: torch.Tensor) -> torch.Tensor:
        """[B] bool: whether a token ends its sample."""
        ends = torch.zeros_like(token, dtype=torch.bool)
        for stop in self.stop_tokens:
            ends = ends | (token == stop)
        return ends

    def forward(
        self,
        logits: torch.Tensor,
        noise: torch.Tensor | None = None,
        temperature: torch.Tensor | None = None,
        top_p: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [B, V] → token [B] int64; `noise` [B] is standard normal."""
        if self.sampling is None:
            return logits.argmax(-1)
        assert noise is not None and temperature is not None
        return draw(logits, noise, temperature, top_p, self.sampling)


def draw(
    logits: torch.Tensor,
    noise: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor | None,
    sampling: Sampling,
) -> torch.Tensor:
    """Draws from the likeliest tokens by the inverse of their cumulative probability.

    In float64, so that engines whose sums differ in the last digits draw the same token.
    """
    uniform = 0.5 * (1 + torch.erf(noise / math.sqrt(2)).double())
    if top_p is None and sampling.top_k is None:
        return pick(distribution(logits, temperature), uniform)
    scores, order = torch.sort(logits.double() / temperature.double(), descending=True, dim=-1)
    probabilities = torch.softmax(scores, -1)
    kept = torch.ones_like(probabilities, dtype=torch.bool)
    if top_p is not None:
        kept = torch.cumsum(probabilities, -1) - probabilities < top_p.double()
    if sampling.top_k is not None:
        kept = kept & (torch.arange(logits.shape[-1]) < sampling.top_k)
    total = torch.cumsum(torch.where(kept, probabilities, 0.0), -1)
    place = (total <= uniform[:, None] * total[:, -1:]).long().sum(-1, keepdim=True)
    return order.gather(-1, torch.clamp(place, max=logits.shape[-1] - 1))[:, 0]

"""Chimera: a draft of one decoder layer that fuses trigrams with the target's own hidden states.

    verified tokens    h_0 … h_j  (the target's, behind its final norm)  ──▶ keys, values of a cache
    drafted token m    t = trigram(token m - 2, m - 1, m)                ──▶ a row of the layer
                       o = layer(t), which sees the cache and its ancestors among the drafted rows
                       logits of token m + 1 = head_d([h_j; o])

The certain token behind the verified ones (the root of a tree) is the row of depth 0, at position
j + 1; head 0 turns it into the logits of token j + 2. A row of depth d stands at position
j + 1 + d, and its head d predicts token j + 2 + d. The pieces are pure functions of tensors and of
the weights, so that they can be trained, run on any cache, and recorded into a graph.

Source: Zeng et al., "Chimera: A Lossless Decoding Method for Accelerating Large Language Models
Inference by Fusing all Tokens", 2024, arXiv 2402.15758. Here the rows of a training sequence see
what the rows of a draft see: verified states, their own chain, themselves.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import linear, rms_norm, silu

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Query, key and value of draft rows, all [B, N, S, D], to what they attend to, [B, N, S, D]."""

WINDOW = 3
"""Tokens of a trigram."""


@dataclass(frozen=True)
class ChimeraConfig:
    """The shape of a Chimera draft.

    Args:
        width: H, of the target's embeddings and hidden states.
        vocabulary: V.
        attention_heads: N; its heads have an even size H / N.
        mlp_width: inner width of the fusion layer's SwiGLU.
        heads: decoding heads, the deepest tree that can be drafted.
        rotary_theta: base of the rotary angles.
        head_rank: None for heads of a whole matrix [V, 2H]. Otherwise a head is
            W_lm A [h; o] + U D [h; o] with A [H, 2H] and U D of this rank, 0 for A alone.
        residual_heads: x + SiLU(W x + b) in front of every head.
        epsilon: of the RMS norms.
    """

    width: int
    vocabulary: int
    attention_heads: int = 4
    mlp_width: int = 512
    heads: int = 5
    rotary_theta: float = 10000.0
    head_rank: int | None = None
    residual_heads: bool = False
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("width", "vocabulary", "attention_heads", "mlp_width", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if self.width % (2 * self.attention_heads):
            raise ValueError(
                f"attention_heads: found {self.attention_heads} for width {self.width}, expected "
                "heads of one even size"
            )
        if self.head_rank is not None and self.head_rank < 0:
            raise ValueError(f"head_rank: found {self.head_rank}, expected 0 or more, or None")

    @property
    def head_size(self) -> int:
        """D, of one head of the attention."""
        return self.width // self.attention_heads


class Chimera(nn.Module):
    """The draft. The target's embedding table and W_lm are buffers that are not saved with it.

    Everything behind `forward` is also a method of its own; `forward` is there so that
    `torch.func.functional_call(chimera, weights, (piece, *tensors))` runs a piece on other weights.
    `weights` of it may name every parameter and the buffer `lm_head`.

    Args:
        config: its shape.
        embedding: [V, H] the target's embedding table, frozen.
        lm_head: [V, H] its last matrix W_lm, frozen.
    """

    embedding: torch.Tensor
    lm_head: torch.Tensor

    def __init__(
        self, config: ChimeraConfig, embedding: torch.Tensor, lm_head: torch.Tensor
    ) -> None:
        super().__init__()
        self.config = config
        shape = (config.vocabulary, config.width)
        for name, table in (("embedding", embedding), ("lm_head", lm_head)):
            if tuple(table.shape) != shape:
                raise ValueError(
                    f"{name}: found shape {list(table.shape)}, expected {list(shape)}, the "
                    "vocabulary and width of the draft"
                )
            self.register_buffer(name, table.detach(), persistent=False)
        width, dtype = config.width, lm_head.dtype

        def matrix(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, dtype=dtype) / math.sqrt(columns))

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape, dtype=dtype))

        self.trigram_residual, self.trigram_bias = zeros(3 * width, 3 * width), zeros(3 * width)
        self.trigram_out = matrix(width, WINDOW * width)
        self.attention_norm = nn.Parameter(torch.ones(width, dtype=dtype))
        self.query, self.key, self.value, self.out = (matrix(width, width) for _ in range(4))
        self.mlp_norm = nn.Parameter(torch.ones(width, dtype=dtype))
        self.gate, self.up = (matrix(config.mlp_width, width) for _ in range(2))
        self.down = matrix(width, config.mlp_width)
        self.heads = nn.ModuleList(_Head(config, lm_head) for _ in range(config.heads))

    def trigram(self, embedded: torch.Tensor) -> torch.Tensor:
        """Features t [B, S, H] of the embeddings [B, S, 3H] of tokens m - 2, m - 1, m in a row."""
        inner = linear(embedded, self.trigram_residual, self.trigram_bias)
        return linear(embedded + silu(inner), self.trigram_out)

    def context(
        self, hidden: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value [B, N, S, D] of verified tokens, for the cache of the fusion layer.

        Args:
            hidden: [B, S, H] the target's states behind its final norm.
            positions: [B, S] int64, of the tokens whose states they are.
        """
        normed = self._normed(hidden, self.attention_norm)
        key = self._rotated(self._split(linear(normed, self.key)), positions)
        return key, self._split(linear(normed, self.value))

    def fuse(self, trigrams: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Features o [B, S, H] of draft rows.

        Args:
            trigrams: [B, S, H] as `trigram` returns them.
            positions: [B, S] int64, of the tokens that the trigrams end with.
            attend: lets the rows see the cached context, their ancestors and themselves.
        """
        query, key, value = self.project(trigrams, positions)
        return self.finish(trigrams, attend(query, key, value))

    def project(
        self, trigrams: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value [B, N, S, D] of draft rows: what of the layer comes before."""
        normed = self._normed(trigrams, self.attention_norm)
        query = self._rotated(self._split(linear(normed, self.query)), positions)
        key = self._rotated(self._split(linear(normed, self.key)), positions)
        return query, key, self._split(linear(normed, self.value))

    def finish(self, trigrams: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Features o [B, S, H]: what of the layer follows its attention [B, N, S, D]."""
        rows = trigrams + linear(attended.transpose(1, 2).flatten(2), self.out)
        normed = self._normed(rows, self.mlp_norm)
        inner = silu(linear(normed, self.gate)) * linear(normed, self.up)
        return rows + linear(inner, self.down)

    def logits(self, hidden: torch.Tensor, fused: torch.Tensor, depth: int) -> torch.Tensor:
        """[B, S, V] of the tokens behind draft rows of one depth.

        Args:
            hidden: [B, S, H] the last verified state, the same for all rows of a tree.
            fused: [B, S, H] o of the rows.
            depth: in [0, heads); 0 is the root.
        """
        head = cast(_Head, self.heads[depth])
        result: torch.Tensor = head(torch.cat([hidden, fused], -1), self.lm_head)
        return result

    def with_whole_heads(self) -> Chimera:
        """The same draft, each of its heads one matrix [V, 2H]: more memory, fewer products."""
        whole = Chimera(replace(self.config, head_rank=None), self.embedding, self.lm_head)
        state = {name: value for name, value in self.state_dict().items() if name[:6] != "heads."}
        for number, item in enumerate(self.heads):
            head = cast(_Head, item)
            state[f"heads.{number}.whole"] = head.matrix(self.lm_head)
            if head.residual is not None and head.bias is not None:
                state[f"heads.{number}.residual"] = head.residual
                state[f"heads.{number}.bias"] = head.bias
        whole.load_state_dict(state)
        return whole.eval()

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        """[B, S, 3H] embeddings of token windows [B, S, 3], as `trigram` takes them."""
        return self.embedding[windows].flatten(2)

    def forward(self, piece: str, *arguments: Any) -> Any:
        """What the method named `piece` returns."""
        pieces: dict[str, Callable[..., Any]] = {
            "trigram": self.trigram,
            "context": self.context,
            "project": self.project,
            "finish": self.finish,
            "logits": self.logits,
            "embed": self.embed,
        }
        if piece not in pieces:
            raise ValueError(f"piece: found {piece!r}, expected one of {', '.join(pieces)}")
        return pieces[piece](*arguments)

    def _normed(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(rows, (rows.shape[-1],), weight, self.config.epsilon)

    def _split(self, rows: torch.Tensor) -> torch.Tensor:
        heads = (self.config.attention_heads, self.config.head_size)
        return rows.view(*rows.shape[:2], *heads).transpose(1, 2)

    def _rotated(self, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotates the two halves of every head; angles are of float32 at least."""
        half = rows.shape[-1] // 2
        dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
        steps = torch.arange(half, dtype=dtype, device=rows.device)
        frequencies = torch.exp(steps * (-math.log(self.config.rotary_theta) / half))
        angles = positions[:, None, :, None].to(dtype) * frequencies
        cos, sin = angles.cos().to(rows.dtype), angles.sin().to(rows.dtype)
        first, second = rows[..., :half], rows[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class _Head(nn.Module):
    """Logits of [h; o], at first W_lm h + W_lm o."""

    def __init__(self, config: ChimeraConfig, lm_head: torch.Tensor) -> None:
        super().__init__()
        width, dtype = config.width, lm_head.dtype
        self.whole = self.mix = self.rank_in = self.rank_out = self.residual = self.bias = None
        if config.head_rank is None:
            self.whole = nn.Parameter(torch.cat([lm_head.detach(), lm_head.detach()], 1))
        else:
            one = torch.eye(width, dtype=dtype)
            self.mix = nn.Parameter(torch.cat([one, one], 1))
        if config.head_rank:
            columns = torch.randn(config.head_rank, 2 * width, dtype=dtype)
            self.rank_in = nn.Parameter(columns / math.sqrt(2 * width))
            rows = torch.zeros(config.vocabulary, config.head_rank, dtype=dtype)
            self.rank_out = nn.Parameter(rows)
        if config.residual_heads:
            self.residual = nn.Parameter(torch.zeros(2 * width, 2 * width, dtype=dtype))
            self.bias = nn.Parameter(torch.zeros(2 * width, dtype=dtype))

    @torch.no_grad()
    def matrix(self, lm_head: torch.Tensor) -> torch.Tensor:
        """[V, 2H], what the head multiplies with."""
        if self.whole is not None:
            return self.whole
        assert self.mix is not None
        matrix = lm_head @ self.mix
        if self.rank_in is not None and self.rank_out is not None:
            matrix = matrix + self.rank_out @ self.rank_in
        return matrix

    def forward(self, rows: torch.Tensor, lm_head: torch.Tensor) -> torch.Tensor:
        """[B, S, V] of rows [B, S, 2H]."""
        if self.residual is not None:
            rows = rows + silu(linear(rows, self.residual, self.bias))
        if self.whole is not None:
            return linear(rows, self.whole)
        assert self.mix is not None
        logits = linear(linear(rows, self.mix), lm_head)
        if self.rank_in is not None and self.rank_out is not None:
            logits = logits + linear(linear(rows, self.rank_in), self.rank_out)
        return logits


def token_windows(tokens: torch.Tensor) -> torch.Tensor:
    """[B, S, 3]: tokens m - 2, m - 1 and m for every m of [B, S]; the first one stands in before.

    Position 0 gives [x_0, x_0, x_0] and position 1 gives [x_0, x_0, x_1].
    """
    first = tokens[:, :1]
    padded = torch.cat([first, first, tokens], 1)
    return torch.stack([padded[:, :-2], padded[:, 1:-1], padded[:, 2:]], -1)


def target_fingerprint(embedding: torch.Tensor, lm_head: torch.Tensor) -> str:
    """SHA-256 over a target's embedding table and last matrix, as float32."""
    digest = hashlib.sha256()
    for table in (embedding, lm_head):
        digest.update(repr(tuple(table.shape)).encode())
        digest.update(table.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()

"""What drafts and judges learn from: a target's states behind its final norm, and its own text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class TargetTables:
    """The two tables of a target that a draft shares with it.

    Attributes:
        embedding: the module from tokens to rows.
        last: the module from states to logits, a linear without bias.
    """

    embedding: nn.Embedding
    last: nn.Linear


@dataclass(frozen=True)
class TargetStates:
    """What a target computes over sequences.

    Attributes:
        tokens: [N, S] int64, the sequences.
        hidden: [N, S, H] the input of its last linear, in the dtype asked for.
        predicted: [N, S] int64, its likeliest next token at every position.
    """

    tokens: torch.Tensor
    hidden: torch.Tensor
    predicted: torch.Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, chosen: torch.Tensor | slice) -> TargetStates:
        """The states of some of the sequences."""
        return TargetStates(self.tokens[chosen], self.hidden[chosen], self.predicted[chosen])


def target_tables(decoder: nn.Module, last: nn.Linear | None = None) -> TargetTables:
    """Finds the embedding table and the last linear by the size of the vocabulary.

    Args:
        decoder: a `Decoder`, or a module with an attribute `vocabulary`.
        last: the linear from states to logits, where it cannot be told by its size.
    Raises:
        ValueError: none, or more than one, has that size; or the last linear has a bias.
    """
    vocabulary: int = decoder.vocabulary  # type: ignore[assignment]
    linears = [
        item
        for item in decoder.modules()
        if isinstance(item, nn.Linear) and item.out_features == vocabulary
    ]
    if last is None:
        if len(linears) != 1:
            raise ValueError(
                f"decoder: found {len(linears)} linear modules with {vocabulary} outputs, expected "
                "one, the last; name it with `last`"
            )
        (last,) = linears
    if last.bias is not None:
        raise ValueError("decoder: found a bias in its last linear, expected one without")
    tables = [
        item
        for item in decoder.modules()
        if isinstance(item, nn.Embedding)
        and tuple(item.weight.shape) == (vocabulary, last.in_features)
    ]
    if len(tables) != 1:
        raise ValueError(
            f"decoder: found {len(tables)} embeddings of shape [{vocabulary}, {last.in_features}], "
            "expected one"
        )
    return TargetTables(tables[0], last)


@torch.no_grad()
def record_states(
    decoder: nn.Module,
    tokens: torch.Tensor,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float16,
    last: nn.Linear | None = None,
) -> TargetStates:
    """Runs a target over whole sequences and keeps the input of its last linear.

    Args:
        decoder: a `Decoder` without image; left as it was.
        tokens: [N, S] int64.
        batch_size: sequences per call.
        dtype: of the states that are kept.
        last: see `target_tables`.
    Raises:
        ValueError: sequences are longer than the decoder has positions for.
    """
    target: Any = decoder
    length = tokens.shape[1]
    if length > target.max_positions:
        raise ValueError(
            f"tokens: found sequences of {length}, expected at most {target.max_positions}, for "
            "which the decoder has positions"
        )
    last = target_tables(decoder, last).last
    seen: list[torch.Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    hidden, predicted = [], []
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    try:
        for start in range(0, len(tokens), batch_size):
            batch = tokens[start : start + batch_size]
            logits = target(
                input_ids=batch,
                position_ids=target.prompt_positions(length).expand(len(batch), length),
                attention_mask=mask.expand(len(batch), 1, length, length),
            )
            hidden.append(seen.pop().to(dtype))
            predicted.append(logits.argmax(-1))
    finally:
        handle.remove()
    return TargetStates(tokens, torch.cat(hidden), torch.cat(predicted))


@torch.no_grad()
def generate_text(
    decoder: nn.Module,
    prompts: torch.Tensor,
    count: int,
    temperature: float = 0.0,
    batch_size: int = 128,
    seed: int = 0,
) -> torch.Tensor:
    """The target's own continuations, [N, P + count].

    The module itself runs, with a cache behind its calls of `scaled_dot_product_attention`: nothing
    is captured, and no cache is copied, so that a text for fitting takes seconds.

    Args:
        decoder: a `Decoder` without image, with causal attention.
        prompts: [N, P] int64.
        count: new tokens of every prompt, at least 1.
        temperature: 0 takes the likeliest token.
        batch_size: prompts per run.
        seed: of what is drawn.
    """
    target: Any = decoder
    length = prompts.shape[1]
    capacity = length + count
    if capacity > target.max_positions:
        raise ValueError(
            f"generate_text: found prompts of {length} and {count} new tokens, expected at most "
            f"{target.max_positions} together, for which the decoder has positions"
        )
    generator = torch.Generator().manual_seed(seed)
    made = []
    for start in range(0, len(prompts), batch_size):
        tokens = prompts[start : start + batch_size]
        fresh, first = tokens, 0
        positions = target.prompt_positions(length).expand(len(tokens), length)
        with _Cache(capacity) as cache:
            for _ in range(count):
                rows = torch.arange(first, first + fresh.shape[1])
                mask = torch.arange(first + fresh.shape[1]) <= rows[:, None]
                cache.next_call(first)
                logits = target(
                    input_ids=fresh,
                    position_ids=positions,
                    attention_mask=mask.expand(len(tokens), 1, *mask.shape),
                )[:, -1]
                fresh = _chosen(logits, temperature, generator)
                first = tokens.shape[1]
                positions = torch.full((len(tokens), 1), first + target.position_shift)
                tokens = torch.cat([tokens, fresh], 1)
        made.append(tokens)
    return torch.cat(made)


def _chosen(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    if not temperature:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator)


class _Cache(TorchFunctionMode):
    """Keeps the keys and values of every attention in the order of calls."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._first = self._site = 0

    def next_call(self, first: int) -> None:
        """The decoder is about to be called with rows from `first` on."""
        self._first, self._site = first, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        if self._site == len(self._kept):
            self._kept.append((self._empty(key), self._empty(value)))
        keys, values = self._kept[self._site]
        last = self._first + query.shape[2]
        keys[:, :, self._first : last] = key
        values[:, :, self._first : last] = value
        self._site += 1
        return func(query, keys[:, :, :last], values[:, :, :last], *args[3:], **(kwargs or {}))

    def _empty(self, fresh: torch.Tensor) -> torch.Tensor:
        return fresh.new_empty(*fresh.shape[:2], self._capacity, fresh.shape[3])

"""What drafts and judges learn from: a target's states behind its final norm, and its own text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from optimize.capture.from_decoder import Parts, capture_decoder
from optimize.ir.decode import DecodeLoop, Sampling


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


def generate_text(
    decoder: nn.Module,
    prompts: torch.Tensor,
    count: int,
    temperature: float = 0.0,
    batch_size: int = 64,
    seed: int = 0,
) -> torch.Tensor:
    """The target's own continuations, [N, P + count]; with a cache, as its captured program.

    Args:
        decoder: a `Decoder` without image.
        prompts: [N, P] int64, P at least 2.
        count: new tokens of every prompt.
        temperature: 0 takes the likeliest token.
        batch_size: prompts per run.
        seed: of what is drawn.
    """
    loop = DecodeLoop(
        max_prompt=max(prompts.shape[1], 3),
        max_new_tokens=count,
        stop_tokens=(),
        sampling=Sampling(temperature) if temperature else None,
    )
    program = capture_decoder(Parts(decoder), loop)
    made = []
    for number, start in enumerate(range(0, len(prompts), batch_size)):
        batch = prompts[start : start + batch_size]
        lengths = torch.full((len(batch),), batch.shape[1])
        answer = program(seed=seed + number, input_ids=batch, lengths=lengths)
        made.append(torch.as_tensor(answer["tokens"]))
    return torch.cat([prompts, torch.cat(made)], 1)

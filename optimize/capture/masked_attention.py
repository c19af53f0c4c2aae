"""Makes transformers models attend through one op that takes the mask as it is given.

The library's own attention functions repeat the heads of grouped keys, skip masks they find
superfluous, or add them to scores. A captured decoder needs the mask to reach every attention, and
keys in as few heads as they are made in. The function is registered with the library's
`AttentionInterface`; a model's configuration names it only while `masked_attention` is entered.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from optimize.ir.errors import InputModelError

NAME = "optimize_masked"

# What models pass besides queries, keys, values and mask without it changing the result here:
# windows are refused or inert before, causality is in the mask.
IGNORED = {
    "cache_position",
    "cu_seq_lens_k",
    "cu_seq_lens_q",
    "is_causal",
    "max_length_k",
    "max_length_q",
    "output_attentions",
    "output_hidden_states",
    "position_embeddings",
    "position_ids",
    "sliding_window",
    "use_cache",
}

_watched: ContextVar[list[torch.Tensor | None] | None] = ContextVar("masks", default=None)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as the library's interface wants it.

    Args:
        module: the layer that asks.
        query: [B, N, S, D].
        key, value: [B, n, S, D], N a multiple of n.
        attention_mask: bool [B, 1, S, S], True where a row may attend; None for all.
        dropout: ignored; models are captured in evaluation mode.
        scaling: of the scores; one over the square root of D if None.
    Returns:
        [B, S, N, D], and no weights.
    Raises:
        InputModelError: an option that changes scores, such as soft-capping or sinks.
    """
    unknown = [
        name
        for name, item in options.items()
        if name not in IGNORED and item is not None and item is not False
    ]
    if unknown:
        raise InputModelError(
            f"model: found attention of {type(module).__name__} with {', '.join(sorted(unknown))}, "
            "expected softmax over masked, scaled scores and nothing else; such a model cannot be "
            "captured"
        )
    seen = _watched.get()
    if seen is not None:
        seen.append(attention_mask)
    out = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


def configurations(module: nn.Module) -> list[Any]:
    """The configurations that say how layers of a module attend, outer ones first."""
    found: dict[int, Any] = {}

    def add(config: Any) -> None:
        if config is not None and hasattr(config, "_attn_implementation"):
            found.setdefault(id(config), config)
            for name in getattr(config, "sub_configs", {}):
                add(getattr(config, name, None))

    for part in module.modules():
        add(getattr(part, "config", None))
    return list(found.values())


@contextmanager
def masked_attention(configs: list[Any]) -> Iterator[None]:
    """Lets `attend` do the attention of models with these configurations."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        # Setting an outer configuration sets those within, which come later in the list.
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


@contextmanager
def watched_masks() -> Iterator[list[torch.Tensor | None]]:
    """Collects the mask of every attention that `attend` does."""
    masks: list[torch.Tensor | None] = []
    token = _watched.set(masks)
    try:
        yield masks
    finally:
        _watched.reset(token)

"""Whether a transformers model is one that a decoder without a cache can stand for.

Some things a configuration says. The rest is tried on a few tokens: every layer attends through the
given mask, logits are the model's own, and positions come from the given ids.
"""

from typing import Any

import torch

from optimize.capture.language_decoder import LanguageDecoder
from optimize.capture.masked_attention import watched_masks
from optimize.ir.errors import InputModelError

TOKENS = 5
# Relative to the largest logit; two attention kernels in the weights' precision.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
ALIBI = ("bloom", "mpt")
RECURRENT = ("linear_attention", "mamba", "recurrent", "conv")


def check_configuration(model: Any) -> Any:
    """Refuses what a configuration already tells.

    Returns:
        The model's configuration.
    Raises:
        InputModelError: not a transformers model with a language-modelling head; encoder and
            decoder; experts; layers without attention; soft-capped scores; rotary tables that
            follow the length.
    """
    config, kind = getattr(model, "config", None), type(model).__name__
    if config is None or not hasattr(config, "get_text_config") or not hasattr(model, "generate"):
        raise InputModelError(
            f"model: found {kind}, expected a transformers model with a language-modelling head, "
            "such as LlamaForCausalLM; load it with AutoModelForCausalLM or "
            "AutoModelForImageTextToText"
        )
    if config.is_encoder_decoder:
        raise _refused(kind, "an encoder and a decoder", "a decoder alone")
    if model.get_output_embeddings() is None:
        raise _refused(kind, "no head", "logits of a vocabulary")
    text = config.get_text_config()
    for name in EXPERTS:
        if (getattr(text, name, None) or 0) > 1:
            raise _refused(kind, f"{name}={getattr(text, name)}", "the same weights for all tokens")
    layers = getattr(text, "layer_types", None) or ()
    others = sorted({layer for layer in layers if any(word in layer for word in RECURRENT)})
    if others:
        raise _refused(kind, f"layers of type {', '.join(others)}", "attention in every layer")
    if getattr(text, "attn_logit_softcapping", None) is not None:
        raise _refused(
            kind, f"attn_logit_softcapping={text.attn_logit_softcapping}", "plain attention scores"
        )
    if getattr(text, "alibi", None) or text.model_type in ALIBI:
        raise _refused(kind, "biases of scores (ALiBi)", "positions that come from position_ids")
    if text is config and getattr(text, "use_bidirectional_attention", None):
        raise _refused(kind, "attention in both directions", "a model that generates tokens")
    for rope in rotary_types(text):
        if rope in ("dynamic", "longrope"):
            raise _refused(kind, f"{rope} rotary positions", "tables that no length changes")
    if not isinstance(getattr(text, "max_position_embeddings", None), int):
        raise _refused(kind, "no max_position_embeddings", "a largest number of positions")
    return config


def rotary_types(config: Any) -> list[str]:
    """The kinds of rotary tables of a text configuration."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    sets = [given] if "rope_type" in given else [item for item in given.values() if item]
    return [str(item.get("rope_type")) for item in sets if isinstance(item, dict)]


def _refused(kind: str, found: str, expected: str) -> InputModelError:
    return InputModelError(
        f"model: found {kind} with {found}, expected {expected}; such a model cannot be captured"
    )


@torch.no_grad()
def check_behaviour(model: Any, decoder: LanguageDecoder) -> None:
    """Tries the decoder on a few tokens, beside the model itself.

    Raises:
        InputModelError: says what the model does otherwise.
    """
    kind = type(model).__name__
    device = model.get_input_embeddings().weight.device
    length = min(TOKENS, decoder.max_positions)
    tokens = torch.arange(2 * length, device=device).reshape(2, length) % decoder.vocabulary
    positions = decoder.prompt_positions(length, image=False).to(device)
    mask = torch.ones(length, length, dtype=torch.bool, device=device)
    types = {}
    if decoder.attention == "prefix":
        types = {"token_type_ids": torch.zeros_like(tokens)}
    else:
        mask = mask.tril()
    mask = mask.expand(2, 1, length, length)
    try:
        with watched_masks() as masks:
            found = decoder(tokens, positions, mask)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        if isinstance(error, InputModelError):
            raise
        lines = str(error).strip().splitlines() or [""]
        raise _refused(
            kind,
            f"a forward that fails on embeddings, positions and a mask ({lines[0]})",
            "one that takes inputs_embeds, position_ids and attention_mask",
        ) from error
    layers = int(model.config.get_text_config().num_hidden_layers)
    intact = [item is not None and _same(item, mask) for item in masks]
    if len(masks) != layers or not all(intact):
        raise _refused(
            kind,
            f"{sum(intact)} attentions with the given mask in {layers} layers",
            "one in every layer, through transformers' AttentionInterface",
        )
    expected = model(input_ids=tokens, use_cache=False, **types).logits
    if not _close(found, expected):
        raise _refused(kind, "other logits when positions and mask are given", "the model's own")
    # Bit for bit: weights as they are first drawn let positions matter very little.
    if length > 1 and torch.equal(decoder(tokens, positions.flip(-1), mask), found):
        raise _refused(
            kind, "logits that no position changes", "positions that come from position_ids"
        )


def _same(mask: torch.Tensor, given: torch.Tensor) -> bool:
    return mask.dtype == torch.bool and mask.shape == given.shape and bool((mask == given).all())


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits agree; where both are NaN they do."""
    largest = float(expected.float().abs().nan_to_num().max())
    near = TOLERANCE.get(expected.dtype, 0.2)
    return torch.allclose(found, expected, rtol=0, atol=near * (largest or 1), equal_nan=True)

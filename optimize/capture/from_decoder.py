"""Captures a decoder, with or without image, as a program that generates tokens.

    vision (once) → prefill → decode, decode, … until every sample is finished

The decoder is traced without a cache, once with a whole prompt and once with one token. Its
self-attention sites, known by the mask that reaches them, then get explicit cache states:

    prefill    sdpa(q, k, v, mask)    ───▶    sdpa(q, k, v, is_causal=True);  key_0 = pad(k), …
    decode     sdpa(q, k, v, mask)    ───▶    cached_attention(q, k, v, key_0, value_0, rows)

Each sample of a batch has its own number of rows: prompts are padded at their end, and the padding
is overwritten by the answer.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import nn

from optimize.capture.check_model import check_finite, check_module
from optimize.capture.decode_loop import decode_program
from optimize.capture.decode_steps import (
    PROMPT_OUTPUTS,
    ROWS_OUTPUTS,
    STEP_OUTPUTS,
    Decoder,
    PromptStep,
    Rows,
    TokenStep,
)
from optimize.capture.from_module import MAX_BATCH, NamedSize, Traced, evaluation_mode, trace
from optimize.capture.key_value_cache import (
    MASK,
    with_cache_outputs,
    with_caches,
    without_mask,
)
from optimize.ir.chosen_rows import with_last_row_only
from optimize.ir.decode import DecodeLoop, Decoding
from optimize.ir.errors import InputModelError
from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.ir.unflattened import unflattened

ATTRIBUTES = (
    "image_offset",
    "image_tokens",
    "attention",
    "max_positions",
    "position_shift",
    "vocabulary",
    "prompt_positions",
)
"""What a `Decoder` has."""

BATCH = 2
EXAMPLE_PROMPT = 7
"""Text tokens of the example that is traced, besides those before an image."""


class LanguageModel(Protocol):
    """A model whose parts can be told apart: `Parts`, or a module with these attributes.

    Attributes:
        decoder: see `Decoder`.
        vision: pixel_values [B, C, H, W] → image features [B, N, D]; None for text alone.
        image_shape: (C, H, W) of an image; None for text alone.
    """

    @property
    def decoder(self) -> nn.Module: ...

    @property
    def vision(self) -> nn.Module | None: ...

    @property
    def image_shape(self) -> tuple[int, int, int] | None: ...


@dataclass(frozen=True)
class Parts:
    """The parts of a model that has no object for them; attributes as of `LanguageModel`."""

    decoder: nn.Module
    vision: nn.Module | None = None
    image_shape: tuple[int, int, int] | None = None


def capture_decoder(
    parts: LanguageModel, loop: DecodeLoop | None = None, *, allow_nonfinite: bool = False
) -> Program:
    """Captures a decoder and the loop that generates tokens with it.

    Args:
        parts: the model; left exactly as it was.
        loop: how tokens are generated.
        allow_nonfinite: accept NaN and Inf in the weights.
    Returns:
        A program that takes `input_ids` [batch, prompt] int64, `lengths` [batch] int64 (tokens
        without padding, 0 for all), `pixel_values` where there is an image, and returns "tokens"
        [batch, new] int64 and "logits" [batch, V], those of the first new token.
    Raises:
        InputModelError: the model cannot be captured.
        NumericsError: NaN or Inf in the weights.
    """
    loop = loop or DecodeLoop()
    _check_parts(parts)
    decoder = cast(Any, parts.decoder)
    _check_size(decoder, parts, loop)
    with torch.no_grad(), evaluation_mode(parts.decoder):
        features = None
        graphs: dict[str, Graph] = {}
        weights: dict[str, torch.Tensor] = {}
        if parts.vision is not None and parts.image_shape is not None:
            features = _add_vision(parts.vision, parts.image_shape, decoder, graphs, weights)
        prompt = _trace_prompt(decoder, loop, features)
        token = _trace_token(decoder, loop)
        rows = _trace_rows(decoder)
    capacity = loop.rows(decoder.image_tokens)
    prefill, layers = with_cache_outputs(_merged(prompt, weights), capacity)
    graphs["prefill"] = with_last_row_only(prefill)
    graphs["decode"] = with_caches(_merged(token, weights), capacity)
    if not allow_nonfinite:
        check_finite(weights)
    decoding = Decoding(
        loop=replace(loop, stop_tokens=loop.stop_tokens or (), pad_token=loop.pad_token or 0),
        attention=decoder.attention,
        image_tokens=decoder.image_tokens,
        image_offset=decoder.image_offset,
        vocabulary=decoder.vocabulary,
        layers=layers,
        position_shift=decoder.position_shift,
    )
    program = decode_program(graphs, weights, decoding)
    return replace(program, decoder=without_mask(_merged(rows, weights)))


def _check_parts(parts: LanguageModel) -> None:
    for module in (parts.decoder, parts.vision):
        if module is not None:
            check_module(module)
    missing = [name for name in ATTRIBUTES if not hasattr(parts.decoder, name)]
    if missing:
        raise InputModelError(
            f"decoder: found {type(parts.decoder).__name__} without {', '.join(missing)}, expected "
            f"a module with {', '.join(ATTRIBUTES)}; "
            "optimize.capture.decode_steps.Decoder says what they are"
        )
    if (parts.vision is None) != (parts.image_shape is None):
        raise InputModelError(
            f"model: found image_shape {parts.image_shape} and "
            f"{'no' if parts.vision is None else 'a'} vision module, expected both or neither"
        )


def _check_size(decoder: Decoder, parts: LanguageModel, loop: DecodeLoop) -> None:
    rows, most = loop.rows(decoder.image_tokens), decoder.max_positions
    if rows > most:
        raise InputModelError(
            f"DecodeLoop: found max_prompt {loop.max_prompt} + {decoder.image_tokens} image tokens "
            f"+ max_new_tokens {loop.max_new_tokens} = {rows} rows, expected at most {most}, for "
            "which the model has positions; lower max_prompt or max_new_tokens"
        )
    if loop.max_prompt < decoder.image_offset + 2:
        raise InputModelError(
            f"DecodeLoop: found max_prompt {loop.max_prompt}, expected at least two more than the "
            f"{decoder.image_offset} text tokens before the image"
        )
    if (parts.vision is None) != (decoder.image_tokens == 0):
        raise InputModelError(
            f"model: found {decoder.image_tokens} image tokens in the decoder and "
            f"{'no ' if parts.vision is None else 'a '}vision module, expected both or neither"
        )
    for name, given in (("stop_tokens", loop.stop_tokens), ("pad_token", loop.pad_token)):
        for item in given if isinstance(given, tuple) else (given or 0,):
            if not 0 <= item < decoder.vocabulary:
                raise InputModelError(
                    f"DecodeLoop: found {item} in {name}, expected tokens in "
                    f"[0, {decoder.vocabulary})"
                )


def _add_vision(
    vision: nn.Module,
    image_shape: tuple[int, int, int],
    decoder: Decoder,
    graphs: dict[str, Graph],
    weights: dict[str, torch.Tensor],
) -> torch.Tensor:
    """Traces the vision module; returns example features."""
    dtype = next((item.dtype for item in vision.parameters()), torch.float32)
    device = next((item.device for item in vision.parameters()), torch.device("cpu"))
    pixels = torch.zeros(BATCH, *image_shape, dtype=torch.float32, device=device)
    with evaluation_mode(vision):
        traced = trace(
            _Pixels(vision, dtype), {"pixel_values": pixels}, ("image_features",), BATCH, True
        )
    (node,) = traced.graph.output_nodes().values()
    found = tuple(node.meta["val"].shape)
    if len(found) != 3 or found[1] != decoder.image_tokens:
        raise InputModelError(
            f"vision: found features of shape {list(found)}, expected [B, "
            f"{decoder.image_tokens}, D]: one row per image token of the decoder"
        )
    graphs["vision"] = _merged(traced, weights, "vision.")
    return torch.zeros(BATCH, *found[1:], dtype=node.meta["val"].dtype, device=device)


class _Pixels(nn.Module):
    """Images in single precision for a vision module of any precision."""

    def __init__(self, vision: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = vision
        self.dtype = dtype

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.module(pixel_values.to(self.dtype)),)


def _trace_prompt(decoder: Any, loop: DecodeLoop, features: torch.Tensor | None) -> Traced:
    first = decoder.image_offset if features is not None else 0
    length = min(loop.max_prompt, first + EXAMPLE_PROMPT)
    device = next(decoder.parameters()).device
    arguments = {
        "input_ids": torch.zeros(BATCH, length, dtype=torch.int64, device=device),
        "lengths": torch.full((BATCH,), length, device=device),
        "max_new_tokens": torch.full((BATCH,), loop.max_new_tokens, device=device),
        MASK: torch.ones(BATCH, 1, 1, 1, dtype=torch.bool, device=device),
        **({} if features is None else {"image_features": features}),
        **_sampling_examples(loop, device),
    }
    sizes = {}
    if length > first + 2:
        sizes["prompt"] = NamedSize("input_ids", 1, first + 2, loop.max_prompt)
    step = PromptStep(decoder, loop).eval()
    return trace(step, arguments, PROMPT_OUTPUTS, BATCH, True, MAX_BATCH, sizes)


def _trace_token(decoder: Any, loop: DecodeLoop) -> Traced:
    device = next(decoder.parameters()).device
    axes = tuple(decoder.prompt_positions(EXAMPLE_PROMPT).shape[:-2])
    whole = torch.ones(BATCH, dtype=torch.int64, device=device)
    arguments = {
        "token": whole,
        "rows": whole,
        "remaining": whole,
        "finished": torch.zeros(BATCH, dtype=torch.bool, device=device),
        MASK: torch.ones(BATCH, 1, 1, 1, dtype=torch.bool, device=device),
        **_sampling_examples(loop, device),
    }
    return trace(TokenStep(decoder, loop, axes).eval(), arguments, STEP_OUTPUTS, BATCH, True)


def _trace_rows(decoder: Any) -> Traced:
    device = next(decoder.parameters()).device
    axes = tuple(decoder.prompt_positions(EXAMPLE_PROMPT).shape[:-2])
    whole = torch.zeros(BATCH, EXAMPLE_PROMPT, dtype=torch.int64, device=device)
    arguments = {
        "input_ids": whole,
        "positions": whole.clone(),
        MASK: torch.ones(BATCH, 1, 1, 1, dtype=torch.bool, device=device),
    }
    sizes = {"rows": NamedSize("input_ids", 1, 2, decoder.max_positions, ("positions",))}
    return trace(Rows(decoder, axes).eval(), arguments, ROWS_OUTPUTS, BATCH, True, MAX_BATCH, sizes)


def _sampling_examples(loop: DecodeLoop, device: torch.device) -> dict[str, torch.Tensor]:
    if loop.sampling is None:
        return {}
    one = torch.ones((), device=device)
    top_p = {} if loop.sampling.top_p is None else {"top_p": one}
    return {"noise": torch.zeros(BATCH, device=device), "temperature": one, **top_p}


def _merged(traced: Traced, weights: dict[str, torch.Tensor], prefix: str = "") -> Graph:
    """The graph, with its weights among those of other graphs; equal storage has one name."""
    known = {_storage(tensor): name for name, tensor in weights.items() if tensor.numel()}
    renamed: dict[str, str] = {}
    for name, tensor in traced.weights.items():
        found = known.get(_storage(tensor))
        if found is None:
            found = prefix + name
            while found in weights:
                found += "_"
            weights[found] = tensor
        renamed[name] = found
    names = {node: renamed[name] for node, name in traced.graph.weights.items()}
    return unflattened(replace(traced.graph, weights=names))


def _storage(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)

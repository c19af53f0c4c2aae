"""Figures of a pruned prompt: which tokens of the picture are left, and what that saves."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from optimize.ir.errors import InputModelError
from optimize.ir.image_span import ImageSpan
from optimize.ir.layer_widths import LayerWidths, layer_widths
from optimize.ir.program import Program
from optimize.measure.prefill_cost import cache_bytes, flops_at, layer_cost, tokens_by_layer
from optimize.passes.visual_score import Amount, on_grid
from optimize.report.visual_tokens import Saving, StageTokens, VisualTokens
from optimize.runtime.image import png_bytes

LONGEST_SIDE = 512
"""Pixels of a picture in a report; larger ones lose rows and columns."""


def visual_figures(
    before: Program,
    after: Program,
    request: Mapping[str, Any],
    cuts: Sequence[int],
    amounts: Sequence[Amount],
    span: ImageSpan,
    criterion: str,
) -> dict[str, Any]:
    """`record.details["visual_tokens"]`: the first sample of a request, with all that it saves.

    Args:
        before, after: the program without and with pruning.
        request: fields of one request.
        cuts: the layers before which tokens are dropped.
        amounts: what each stage keeps.
        span: the image in the sequence.
        criterion: how tokens are scored.
    """
    assert before.decoding is not None
    run = after.prepared({**request, "max_new_tokens": 1}, 0)
    next(run.steps())
    stages = []
    for number, (layer, amount) in enumerate(zip(cuts, amounts, strict=True), start=1):
        chosen = run.read(f"kept_{number}")[0]
        stages.append(_stage(layer, chosen[chosen >= 0], amount, span))
    text = int(run.request["lengths"].reshape(-1)[0]) or run.sizes["prompt"]
    layers = before.decoding.layers
    by_layer = tokens_by_layer(span.tokens, [len(stage.kept) for stage in stages], cuts, layers)
    kept = [int(count) for count in by_layer]
    try:
        widths = layer_widths(before.graphs["prefill"])
    except InputModelError:
        widths = None
    # A prompt that is shorter than any that the graphs take is padded.
    sizes = {"batch": 1, "prompt": max(text, before.decoding.prompt_range[0])}
    work = _by_formula(widths, span.tokens, kept, text) + (
        Saving(
            "counted from the graphs, all tokens",
            "FLOP",
            flops_at(before.graphs["prefill"], sizes),
            flops_at(after.graphs["prefill"], sizes),
        ),
    )
    figures = VisualTokens(
        criterion=criterion,
        image_tokens=span.tokens,
        text_tokens=text,
        grid=span.grid,
        picture=displayable(run.request["pixel_values"][0]),
        stages=tuple(stages),
        widths=widths,
        work=work,
        cache=_cache(before, after, [text + span.tokens] * layers, [text + n for n in kept]),
    )
    return asdict(figures)


def mean_position(numbers: NDArray[np.int64], tokens: int) -> float:
    """Mean of raster numbers, scaled so that 0 is the first of the tokens and 1 the last."""
    return float(numbers.mean()) / (tokens - 1) if tokens > 1 and len(numbers) else 0.5


def _stage(layer: int, kept: NDArray[np.int64], amount: Amount, span: ImageSpan) -> StageTokens:
    marked: list[int] = []
    if amount.grid is not None:
        marked = kept[on_grid(torch.from_numpy(kept), *amount.grid).numpy()].tolist()
    position = mean_position(kept, span.tokens)
    return StageTokens(layer, tuple(kept.tolist()), tuple(marked), position)


def _by_formula(
    widths: LayerWidths | None, tokens: int, kept: Sequence[int], text: int
) -> tuple[Saving, ...]:
    """Before and after by the formula of the literature: with all tokens, and with the image's."""
    if widths is None:
        return ()
    layers = len(kept)
    return tuple(
        Saving(
            f"formula, {name}",
            "MAC",
            layers * layer_cost(tokens + more, widths),
            sum(layer_cost(count + more, widths) for count in kept),
        )
        for name, more in (
            (f"{tokens} visual + {text} text tokens", text),
            ("visual tokens only", 0),
        )
    ) + (Saving("linear part, visual tokens only", "MAC", *_linear(widths, tokens, kept)),)


def _linear(widths: LayerWidths, tokens: int, kept: Sequence[int]) -> tuple[float, float]:
    """Multiply-adds of the matrices alone, which are proportional to the tokens."""
    matrices = 3 if widths.gated else 2
    each = 4.0 * widths.width**2 + matrices * widths.width * widths.perceptron
    return each * tokens * len(kept), each * sum(kept)


def _cache(
    before: Program, after: Program, whole: Sequence[int], left: Sequence[int]
) -> tuple[Saving, ...]:
    return (
        Saving(
            "space in the loop's slots",
            "B",
            cache_bytes(before.loop),
            cache_bytes(after.loop),
        ),
        Saving(
            f"rows held for this prompt of {whole[0]}",
            "B",
            cache_bytes(before.loop, whole),
            cache_bytes(after.loop, left),
        ),
    )


def displayable(values: NDArray[Any]) -> str | None:
    """Pixels [C, H, W] as a PNG file in base64, grey or in colour, from least to greatest value.

    None for what is no picture: two channels, or more than four; values that are not finite.
    """
    channels = values.shape[0]
    if values.ndim != 3 or channels not in (1, 3, 4) or not np.isfinite(values).all():
        return None
    step = -(-max(values.shape[1:]) // LONGEST_SIDE)
    shown = values[: min(channels, 3), ::step, ::step].astype(np.float64)
    low, high = shown.min(), shown.max()
    unit = (shown - low) / (high - low) if high > low else np.full_like(shown, 0.5)
    pixels = np.rint(unit * 255).astype(np.uint8).transpose(1, 2, 0)
    return base64.b64encode(png_bytes(pixels)).decode()

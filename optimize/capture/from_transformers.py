"""Captures a transformers language model, with its tokenizer and its image processor.

prompt, image ─▶ input_ids, lengths, pixel_values ─▶ vision ─▶ prefill ─▶ decode … ─▶ text
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast, get_args

from optimize.capture.from_decoder import capture_decoder
from optimize.capture.language_families import Size
from optimize.capture.language_parts import LanguageParts, parts_of
from optimize.capture.load_language_model import load_language_model
from optimize.capture.prompt_template import (
    TOKENIZER_FILE,
    Template,
    template_of,
    tokenizer_file,
    tokens_before_image,
)
from optimize.ir.decode import DecodeLoop
from optimize.ir.errors import InputModelError
from optimize.ir.program import Program
from optimize.runtime.prompting import ImageInput, Prompting, Resample


def capture_language_model(
    source: Any,
    *,
    loop: DecodeLoop | None = None,
    image_size: Size | None = None,
    template: str | None = None,
    tokenizer: Any = None,
    processor: Any = None,
    image_offset: int | None = None,
) -> Program:
    """Captures a language model, so that a request is a prompt and an image.

    Args:
        source: a transformers model, its folder, or its hub id; left exactly as it was.
        loop: how tokens are generated. By default as many as the model has positions for, up to
            512 of a prompt and 256 new ones; stop and pad tokens are the model's.
        image_size: (height, width) in pixels; needed where the model takes any.
        template: what a prompt is put into, with "{prompt}" and, for a model with images, "<image>"
            before it. By default the processor's chat template, or nothing more than the two.
        tokenizer: a fast tokenizer of transformers; the source's, or the processor's, by default.
        processor: of images; the source's by default.
        image_offset: text tokens before the image; by default those of the template, or 0.
    Returns:
        A program as of `capture_decoder`, with `prompting` where there is a tokenizer.
    Raises:
        InputModelError: the model, or its tokenizer, cannot be captured.
        NumericsError: NaN or Inf in the weights.
        ResourceError: transformers is not installed, or a model cannot be had.
    """
    loaded = load_language_model(source)
    processor = processor or loaded.processor
    given = tokenizer is not None
    tokenizer = tokenizer or getattr(processor, "tokenizer", None) or loaded.tokenizer
    content = _content(tokenizer, given)
    has_image = hasattr(loaded.model.config, "vision_config") if content is not None else False
    chosen = None
    if content is not None:
        chosen = template_of(tokenizer, processor, template, has_image)
        if image_offset is None and has_image:
            image_offset = tokens_before_image(content, chosen)
    elif template is not None:
        raise InputModelError(
            "template: found one without a tokenizer to read it, expected both or neither; pass "
            "tokenizer="
        )
    parts = parts_of(loaded.model, image_size, image_offset or 0, processor=processor)
    loop = _with_tokens(loop or _longest_loop(parts), loaded.model, tokenizer, parts)
    program = capture_decoder(parts, loop)
    if content is None or chosen is None:
        return replace(program, notes=(*program.notes, _without_text(tokenizer)))
    return _with_prompting(program, parts, chosen, content)


def _content(tokenizer: Any, given: bool) -> bytes | None:
    """The tokenizer's file; None where there is none."""
    if tokenizer is None:
        return None
    content = tokenizer_file(tokenizer)
    if content is None and given:
        raise InputModelError(
            f"tokenizer: found {type(tokenizer).__name__}, which has no tokenizer.json, expected a "
            "fast one; load it with AutoTokenizer.from_pretrained(folder, use_fast=True)"
        )
    return content


def _without_text(tokenizer: Any) -> str:
    if tokenizer is None:
        return "no tokenizer: requests give input_ids, not prompts"
    return f"{type(tokenizer).__name__} has no tokenizer.json: requests give input_ids, not prompts"


def _longest_loop(parts: LanguageParts) -> DecodeLoop:
    """The usual lengths, or what there are positions for, in the same proportion."""
    usual, decoder = DecodeLoop(), parts.decoder
    room = decoder.max_positions - decoder.image_tokens
    new = min(usual.max_new_tokens, max(1, room // 3))
    return DecodeLoop(max_prompt=min(usual.max_prompt, max(1, room - new)), max_new_tokens=new)


def _with_tokens(loop: DecodeLoop, model: Any, tokenizer: Any, parts: LanguageParts) -> DecodeLoop:
    """The loop with the model's stop tokens and pad token where it says none."""
    stops = loop.stop_tokens
    if stops is None:
        stops = _first_known("eos_token_id", model, tokenizer, parts)
    pad = loop.pad_token
    if pad is None:
        pad = next(iter((*_first_known("pad_token_id", model, tokenizer, parts), *stops, 0)))
    return replace(loop, stop_tokens=stops, pad_token=pad)


def _first_known(name: str, model: Any, tokenizer: Any, parts: LanguageParts) -> tuple[int, ...]:
    """Tokens of a name from the first place that has some which the model knows."""
    config = model.config
    places = (getattr(model, "generation_config", None), config, config.get_text_config())
    for place in (*places, tokenizer):
        found = getattr(place, name, None)
        several = found if isinstance(found, Sequence) else (found,)
        known = tuple(
            int(item) for item in several if item is not None and item < parts.decoder.vocabulary
        )
        if known:
            return known
    return ()


def _with_prompting(
    program: Program, parts: LanguageParts, template: Template, content: bytes
) -> Program:
    assert program.decoding is not None
    loop = program.decoding.loop
    image = None
    if parts.image_size is not None:
        image = _image_input(parts, parts.image_size)
    prompting = Prompting(
        tokenizer=TOKENIZER_FILE,
        template=template.text,
        image=image,
        image_offset=program.decoding.image_offset,
        stop_tokens=loop.stop_tokens or (),
        pad_token=loop.pad_token or 0,
        add_special_tokens=template.add_special_tokens,
        longest_prompt=loop.max_prompt,
        vocabulary=program.decoding.vocabulary,
    )
    notes = program.notes if template.note is None else (*program.notes, template.note)
    return replace(program, prompting=prompting, assets={TOKENIZER_FILE: content}, notes=notes)


def _image_input(parts: LanguageParts, size: Size) -> ImageInput:
    if parts.resample not in get_args(Resample) or parts.channels not in (1, 3, 4):
        raise InputModelError(
            f"processor: found resample {parts.resample!r} and {parts.channels} channels, expected "
            f"one of {', '.join(get_args(Resample))} and 1, 3 or 4 channels"
        )
    return ImageInput(
        field="pixel_values",
        channels=cast(Any, parts.channels),
        height=size[0],
        width=size[1],
        rescale=parts.rescale,
        mean=parts.mean,
        std=parts.std,
        resample=cast(Resample, parts.resample),
    )

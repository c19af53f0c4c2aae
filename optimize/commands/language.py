"""What `optimize inspect` says of a language model: layers, image, caches, prompts, masked text."""

from contextlib import suppress
from math import prod
from typing import Any


def describe_decoding(program: Any) -> dict[str, Any] | None:
    """The facts of a program that generates tokens, as data; None of other programs."""
    decoding = program.decoding
    if decoding is None:
        return None
    from optimize.ir.graph import hint, shape
    from optimize.ir.token_axis import SDPA

    sites = [node for node in program.graphs["prefill"].graph.nodes if node.target is SDPA]
    query, key = (shape(item) for item in sites[0].args[:2])
    loop = decoding.loop
    return {
        "layers": decoding.layers,
        "heads": hint(query[-3]),
        "key_heads": hint(key[-3]),
        "head_width": hint(query[-1]),
        "vocabulary": decoding.vocabulary,
        "attention": decoding.attention,
        "image": _image(program),
        "cache_bytes_per_token": _cache_bytes_per_token(program),
        "cache_rows": decoding.capacity,
        "prompt": list(decoding.prompt_range),
        "max_new_tokens": loop.max_new_tokens,
        "stop_tokens": list(loop.stop_tokens or ()),
        "template": None if program.prompting is None else program.prompting.template,
    }


def _image(program: Any) -> dict[str, Any] | None:
    from optimize.ir.image_span import image_span
    from optimize.ir.token_axis import CannotSubset

    decoding = program.decoding
    if not decoding.image_tokens:
        return None
    found: dict[str, Any] = {
        "first": decoding.image_offset,
        "tokens": decoding.image_tokens,
        "grid": None,
    }
    with suppress(CannotSubset):
        span = image_span(program)
        found["grid"] = None if span.grid is None else list(span.grid)
    return found


def _cache_bytes_per_token(program: Any) -> int:
    """Of the keys and values of all layers, for a row of one sample."""
    from optimize.ir.key_value_slots import CACHE
    from optimize.runtime.request import numpy_dtype

    total = 0
    for slot in program.loop.slots:
        if CACHE.fullmatch(slot.name):
            _, groups, _, width = slot.shape
            total += prod((groups, width, numpy_dtype(slot.dtype).itemsize))
    return total


def decoding_lines(data: dict[str, Any]) -> list[str]:
    """The same, to be read."""
    from optimize.ir.report import amount

    heads = f"{data['heads']} heads"
    if data["key_heads"] != data["heads"]:
        heads += f" ({data['key_heads']} of keys and values)"
    low, high = data["prompt"]
    lines = [
        f"language model: {data['layers']} layers, {heads} of width {data['head_width']}, "
        f"vocabulary {data['vocabulary']}, {data['attention']} attention",
    ]
    image = data["image"]
    if image is not None:
        last = image["first"] + image["tokens"] - 1
        grid = "no grid found"
        if image["grid"] is not None:
            grid = f"grid {image['grid'][0]} x {image['grid'][1]} (rows x columns)"
        lines.append(f"image: {image['tokens']} tokens, rows {image['first']} to {last}, {grid}")
    size = amount(data["cache_bytes_per_token"])
    lines.append(
        f"prompt: {low} to {high} text tokens; answer: at most {data['max_new_tokens']}; "
        f"cache: {size}B per token, {data['cache_rows']} rows"
    )
    if data["template"] is not None:
        lines.append(f"prompts are put into {data['template']!r}")
    return lines


def describe_unmasking(program: Any) -> dict[str, Any] | None:
    """The facts of a program that fills in masked text, as data; None of other programs.

    `layers` are attention sites, of one number of heads; 0 where the model has none.
    """
    unmasking = program.unmasking
    if unmasking is None:
        return None
    from optimize.ir.graph import hint, shape
    from optimize.ir.token_axis import SDPA

    loop, sampling = unmasking.loop, unmasking.loop.sampling
    sites = [node for node in program.decoder.graph.nodes if node.target is SDPA]
    query = shape(sites[0].args[0]) if sites else None
    resample, hitting = unmasking.resample, unmasking.first_hitting
    return {
        "layers": len(sites),
        "heads": None if query is None else hint(query[-3]),
        "head_width": None if query is None else hint(query[-1]),
        "vocabulary": unmasking.vocabulary,
        "mask": loop.mask,
        "time": loop.time if unmasking.timed else None,
        "length": loop.length,
        "blocks": loop.blocks,
        "calls": unmasking.calls_per_block * loop.blocks,
        "remasking": loop.remasking,
        "temperature": None if sampling is None else sampling.temperature,
        "reveals_per_call": None if hitting is None else max(hitting.groups),
        "commits_early": unmasking.commit is not None,
        "candidates": None if resample is None else resample.candidates,
        "max_prompt": loop.max_prompt,
        "stop_tokens": list(loop.stop_tokens),
        "template": None if program.prompting is None else program.prompting.template,
    }


def unmasking_lines(data: dict[str, Any]) -> list[str]:
    """The same, to be read."""
    model = f"vocabulary {data['vocabulary']}, mask {data['mask']}"
    if data["layers"]:
        layers = f"{data['layers']} layers, {data['heads']} heads of width {data['head_width']}"
        model = f"{layers}, {model}"
    time = "does not look at the time" if data["time"] is None else f"takes {data['time']} as time"
    blocks = "one block"
    if data["blocks"] > 1:
        blocks = f"{data['blocks']} blocks of {data['length'] // data['blocks']}"
    tokens = "the likeliest tokens"
    if data["temperature"] is not None:
        tokens = f"tokens drawn at temperature {data['temperature']:g} unless asked for another"
    parts = [
        f"text: {data['length']} tokens in {blocks}, at most {data['calls']} calls",
        f"remasking {data['remasking']}",
        tokens,
    ]
    if data["reveals_per_call"] is not None:
        parts.append(f"first hitting, at most {data['reveals_per_call']} reveals per call")
    if data["commits_early"]:
        parts.append("commits early")
    if data["candidates"] is not None:
        parts.append(f"one of {data['candidates']} candidates kept by energy")
    prompt = "prompt: none"
    if data["max_prompt"]:
        prompt = f"prompt: 1 to {data['max_prompt']} tokens, all of a request of one length"
    lines = [f"masked-diffusion language model: {model}, {time}", "; ".join(parts), prompt]
    if data["template"] is not None:
        lines.append(f"prompts are put into {data['template']!r}")
    return lines

"""Parts of a transformers model give what the model itself gives, and can be exported."""

from functools import cache
from typing import Any

import pytest
import torch
from torch.export import Dim

from optimize.capture.language_parts import LanguageParts, parts_of
from optimize.ir.errors import InputModelError
from optimize.recipes.zoo.language_families import (
    LANGUAGE_FAMILIES,
    LanguageExample,
    language_example,
    reference_inputs,
    reference_logits,
)

pytest.importorskip("transformers")

SDPA = torch.ops.aten.scaled_dot_product_attention.default
NAMES = list(LANGUAGE_FAMILIES)
WITH_IMAGES = [name for name in NAMES if language_example(name).image_size is not None]
# Tracing takes seconds a family: one of each kind is in `make test-fast`.
QUICK = ("llama", "llava", "paligemma", "qwen2_5_vl")
BATCH, LENGTHS = 2, (9, 6)


def traced(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@cache
def taken_apart(name: str) -> tuple[LanguageExample, LanguageParts]:
    example = language_example(name, dtype=torch.float64)
    return example, parts_of(example.model, example.image_size, example.prefix)


def tokens_and_pixels(parts: LanguageParts) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 90, (BATCH, LENGTHS[0]), generator=generator)
    if parts.image_size is None:
        return ids, None
    shape = (BATCH, parts.channels, *parts.image_size)
    return ids, torch.randn(shape, generator=generator)


def arguments(
    parts: LanguageParts, ids: torch.Tensor, lengths: tuple[int, ...], image: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, positions and mask of right-padded prompts, as a prefill gives them."""
    decoder = parts.decoder
    extra = decoder.image_tokens if image else 0
    positions = decoder.prompt_positions(ids.shape[1], image=image)
    positions = positions.expand(*positions.shape[:-2], len(ids), -1)
    rows = torch.arange(ids.shape[1] + extra)
    real = rows < torch.tensor(lengths)[:, None, None, None] + extra
    mask = real.expand(-1, 1, len(rows), -1)
    if decoder.attention == "causal":
        mask = mask & (rows[:, None] >= rows)
    return ids, positions, mask


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_text_logits_equal_the_models_own(name: str) -> None:
    example, parts = taken_apart(name)
    ids, _ = tokens_and_pixels(parts)
    found = parts.decoder(*arguments(parts, ids, LENGTHS, image=False))
    for sample, length in enumerate(LENGTHS):
        expected = reference_logits(example.model, ids[sample : sample + 1, :length])[0]
        assert float(expected.std()) > 0.5
        assert torch.allclose(found[sample, :length], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", WITH_IMAGES)
@torch.no_grad()
def test_image_logits_equal_the_models_own(name: str) -> None:
    example, parts = taken_apart(name)
    ids, pixels = tokens_and_pixels(parts)
    assert parts.vision is not None and pixels is not None
    features = parts.vision(pixels)
    assert features.shape[:2] == (BATCH, parts.decoder.image_tokens)
    found = parts.decoder(*arguments(parts, ids, LENGTHS, image=True), features)
    for sample, length in enumerate(LENGTHS):
        one = slice(sample, sample + 1)
        real = length + parts.decoder.image_tokens
        text = ids[one, :length]
        expected = reference_logits(example.model, text, pixels[one], example.prefix)[0]
        assert len(expected) == real
        assert torch.allclose(found[sample, :real], expected, rtol=0, atol=1e-10)
        other = reference_logits(example.model, text, pixels[one].flip(-1), example.prefix)[0]
        assert float((other - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_generates_the_tokens_the_model_generates(name: str) -> None:
    example, parts = taken_apart(name)
    decoder = parts.decoder
    ids, pixels = tokens_and_pixels(parts)
    given = reference_inputs(example.model, ids, pixels, example.prefix)
    new = 5
    made = example.model.generate(
        **given, do_sample=False, max_new_tokens=new, eos_token_id=None, pad_token_id=0
    )
    features = None if parts.vision is None else parts.vision(pixels)
    ids, positions, mask = arguments(parts, ids, (LENGTHS[0],) * BATCH, image=pixels is not None)
    for _ in range(new):
        logits = decoder(ids, positions, mask, features)
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        row = mask.shape[-1]
        last = torch.full_like(positions[..., :1], row + decoder.position_shift)
        positions = torch.cat([positions, last], dim=-1)
        mask = torch.nn.functional.pad(mask, (0, 1, 0, 1))
        mask[..., -1, :] = True
    assert torch.equal(ids[:, -new:], made[:, -new:])
    assert len(set(ids[:, -new:].flatten().tolist())) > 1


def attentions(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    return [node for node in program.graph.nodes if node.target is SDPA]


def exported(module: torch.nn.Module, args: tuple[Any, ...], dims: Any) -> Any:
    with torch.no_grad():
        program = torch.export.export(module, args, dynamic_shapes=dims, strict=False)
        return program.run_decompositions({})


def reaches(node: torch.fx.Node, name: str) -> bool:
    """Whether a mask is the input of that name but for views and slices to the full size."""
    views = ("slice", "view", "expand", "alias", "reshape", "_to_copy")
    while node.op == "call_function":
        assert any(word in str(node.target) for word in views), node.format_node()
        node = node.all_input_nodes[0]
    return node.name == name


def check_attentions(program: Any, parts: LanguageParts) -> None:
    found = attentions(program)
    text = parts.decoder.model.config.get_text_config()
    assert len(found) == text.num_hidden_layers
    for node in found:
        mask = node.args[3] if len(node.args) > 3 else node.kwargs["attn_mask"]
        assert reaches(mask, "attention_mask")
        query, key = (item.meta["val"] for item in node.args[:2])
        assert query.shape[1] == text.num_attention_heads
        assert key.shape[1] == getattr(text, "num_key_value_heads", text.num_attention_heads)
        assert bool(node.kwargs.get("enable_gqa", False)) == (query.shape[1] != key.shape[1])


def dynamic_axes(positions: torch.Tensor, batch: Any, rows: Any, text: Any) -> tuple[Any, ...]:
    lead = positions.ndim - 2
    return {0: batch, 1: text}, {lead: batch, lead + 1: rows}, {0: batch, 2: rows, 3: rows}


@pytest.mark.parametrize("name", traced(NAMES))
def test_exports_text_of_any_length(name: str) -> None:
    _, parts = taken_apart(name)
    ids, _ = tokens_and_pixels(parts)
    args = arguments(parts, ids, LENGTHS, image=False)
    batch, text = Dim("batch", min=1, max=64), Dim("text", min=2, max=64)
    program = exported(parts.decoder, args, dynamic_axes(args[1], batch, text, text))
    check_attentions(program, parts)
    other = arguments(parts, ids[:1, :4].repeat(3, 1), (4, 3, 2), image=False)
    with torch.no_grad():
        assert torch.allclose(program.module()(*other), parts.decoder(*other), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", traced(NAMES))
def test_exports_one_token(name: str) -> None:
    _, parts = taken_apart(name)
    ids, _ = tokens_and_pixels(parts)
    args = arguments(parts, ids[:, :1], (1, 1), image=False)
    batch = Dim("batch", min=1, max=64)
    lead = args[1].ndim - 2
    program = exported(parts.decoder, args, ({0: batch}, {lead: batch}, {0: batch}))
    check_attentions(program, parts)
    other = arguments(parts, ids[:, 1:4].reshape(-1, 1), (1,) * 6, image=False)
    with torch.no_grad():
        assert torch.allclose(program.module()(*other), parts.decoder(*other), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", traced(WITH_IMAGES))
def test_exports_image_and_text(name: str) -> None:
    _, parts = taken_apart(name)
    ids, pixels = tokens_and_pixels(parts)
    assert parts.vision is not None and pixels is not None
    least = parts.decoder.image_offset + 2
    batch, text = Dim("batch", min=1, max=64), Dim("text", min=least, max=64)
    vision = exported(parts.vision, (pixels,), ({0: batch},))
    more = torch.cat([pixels, pixels.flip(-2)[:1]])
    with torch.no_grad():
        features, many = parts.vision(pixels), parts.vision(more)
        assert torch.allclose(vision.module()(more), many, rtol=0, atol=1e-10)
    args = (*arguments(parts, ids, LENGTHS, image=True), features)
    axes = dynamic_axes(args[1], batch, text + parts.decoder.image_tokens, text)
    program = exported(parts.decoder, args, (*axes, {0: batch}))
    check_attentions(program, parts)
    other = (*arguments(parts, ids[:1, :5].repeat(3, 1), (5, 4, 4), image=True), many)
    with torch.no_grad():
        assert torch.allclose(program.module()(*other), parts.decoder(*other), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_model_stays_as_it_was(name: str) -> None:
    example = language_example(name)
    model = example.model
    model.train()
    weights = {key: item.clone() for key, item in model.state_dict().items()}
    before = (model.config.to_dict(), sorted(vars(model)), str(model))
    implementations = attention_names(model)
    parts = parts_of(model, example.image_size, example.prefix)
    ids, _ = tokens_and_pixels(parts)
    parts.decoder(*arguments(parts, ids, LENGTHS, image=False))
    assert (model.config.to_dict(), sorted(vars(model)), str(model)) == before
    assert attention_names(model) == implementations
    assert all(module.training for module in model.modules())
    assert all(torch.equal(item, weights[key]) for key, item in model.state_dict().items())


def attention_names(model: Any) -> list[str]:
    return [
        str(module.config._attn_implementation)
        for module in model.modules()
        if hasattr(module, "config")
    ]


def test_attention_names_return_after_an_error() -> None:
    example, parts = taken_apart("llama")
    names = attention_names(example.model)
    ids, _ = tokens_and_pixels(parts)
    tokens, positions, mask = arguments(parts, ids, LENGTHS, image=False)
    with pytest.raises(RuntimeError):
        parts.decoder(tokens, positions, mask[..., :-1])
    assert attention_names(example.model) == names


def test_refuses_what_is_no_language_model() -> None:
    with pytest.raises(InputModelError, match=r"found Linear, expected a transformers model"):
        parts_of(torch.nn.Linear(2, 2))

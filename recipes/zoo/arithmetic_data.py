"""Sums of three numbers, told in words and worked out in words of one's own choice.

    anna has 4 7 coins , finds 3 8 and buys 2 5 . how many ?
    first 7 plus 8 plus 5 makes 2 0 , so write 0 carry 2 . then 4 plus 3 plus 2 plus 2 makes 1 1 .
    the total is 1 1 0 end

The same working can be worded in thousands of ways, and a `Style` says which are common. The
digits are the same in all of them, so a program can tell a mistake from another way to say it:
`is_correct` looks at the answer, `first_mistake` at the working.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

END_WORD = "end"
NAMES = ("anna", "ben", "carl", "dora")
THINGS = ("apples", "books", "coins", "shells")
VERBS = ("buys", "finds", "gets", "wins")

WORDINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ones": ("first", "to begin ,", "the ones :"),
        "tens": ("then", "next ,", "now the tens :"),
        "joiner": ("plus", "and", "added to"),
        "carried": ("plus", "and the", "with the carried"),
        "makes": ("makes", "gives", "is", "equals"),
        "so": (", so", ", thus", ". hence", ". therefore"),
        "write": ("write", "we put", "note", "we keep"),
        "carry": ("carry", "and carry", "and we take"),
        "total": ("the total is", "so the sum is", "altogether", "answer :"),
    }
)
"""Place in the working → ways to word it, which mean the same."""


def _words() -> tuple[str, ...]:
    digits = [str(digit) for digit in range(10)]
    prompt = [*NAMES, *THINGS, *VERBS, *"has , and . how many ?".split()]
    wordings = [word for ways in WORDINGS.values() for way in ways for word in way.split()]
    return tuple(dict.fromkeys([END_WORD, *digits, *prompt, *wordings]))


WORDS = _words()
"""Token number → its word."""

END = WORDS.index(END_WORD)
VOCABULARY = len(WORDS)
FIRST_DIGIT = WORDS.index("0")
PROMPT_TOKENS = 17
"""Tokens of every prompt."""

LONGEST_ANSWER = 56
"""No answer has more tokens, however it is worded, its `END` included."""

_NUMBER_OF = {word: number for number, word in enumerate(WORDS)}
_DIGITS = range(FIRST_DIGIT, FIRST_DIGIT + 10)

Tokens = Sequence[int]


@dataclass(frozen=True)
class Style:
    """How often each way of wording is used.

    Args:
        favourites: for each place of `WORDINGS`, the number of the way that is used most.
        share: probability of the favourite, in (0, 1]; the others share the rest equally.
    """

    favourites: Mapping[str, int]
    share: float

    def worded(self, place: str, source: random.Random) -> str:
        """A way to word a place."""
        ways = WORDINGS[place]
        favourite = self.favourites[place]
        if source.random() < self.share:
            return ways[favourite]
        return source.choice([way for number, way in enumerate(ways) if number != favourite])


TARGET_STYLE = Style({place: 0 for place in WORDINGS}, share=0.6)
DRAFT_STYLE = Style({place: 1 for place in WORDINGS}, share=0.7)


@dataclass(frozen=True)
class Problem:
    """Three numbers from 10 to 99 and what they count."""

    numbers: tuple[int, int, int]
    name: str
    thing: str
    verbs: tuple[str, str]

    @property
    def prompt(self) -> list[int]:
        """The question, `PROMPT_TOKENS` tokens."""
        first, second, third = (" ".join(str(number)) for number in self.numbers)
        before, after = self.verbs
        return tokens_of(
            f"{self.name} has {first} {self.thing} , {before} {second} and {after} {third} ."
            " how many ?"
        )


def draw_problem(source: random.Random) -> Problem:
    """A random problem."""
    first, second, third = (source.randint(10, 99) for _ in range(3))
    verbs = (source.choice(VERBS), source.choice(VERBS))
    return Problem((first, second, third), source.choice(NAMES), source.choice(THINGS), verbs)


def is_held_out(problem: Problem) -> bool:
    """Whether problems with these numbers, in this order, are kept from training: one in ten."""
    first, second, third = problem.numbers
    return (7919 * first + 104729 * second + 1299709 * third) % 1009 % 10 == 0


def draw_problems(count: int, source: random.Random, held_out: bool) -> list[Problem]:
    """Random problems that training may see, or that it may not."""
    problems: list[Problem] = []
    while len(problems) < count:
        problem = draw_problem(source)
        if is_held_out(problem) == held_out:
            problems.append(problem)
    return problems


def worked_out(problem: Problem, style: Style, source: random.Random) -> list[int]:
    """A correct answer with its working, in tokens; it ends with `END`."""

    def say(place: str) -> str:
        return style.worded(place, source)

    def spaced(number: int) -> str:
        return " ".join(str(number))

    tens, ones = zip(*(divmod(number, 10) for number in problem.numbers), strict=True)
    carry, written = divmod(sum(ones), 10)
    parts = [say("ones"), str(ones[0])]
    for digit in ones[1:]:
        parts += [say("joiner"), str(digit)]
    parts += [say("makes"), spaced(sum(ones)), say("so"), say("write"), str(written)]
    parts += [say("carry"), str(carry), "."] if carry else ["."]
    parts += [say("tens"), str(tens[0])]
    for digit in tens[1:]:
        parts += [say("joiner"), str(digit)]
    parts += [say("carried"), str(carry)] if carry else []
    parts += [say("makes"), spaced(sum(tens) + carry), "."]
    parts += [say("total"), spaced(sum(problem.numbers)), END_WORD]
    return tokens_of(" ".join(parts))


def numbers_of(prompt: Tokens) -> tuple[int, ...]:
    """The numbers of a prompt, or of an answer: runs of digits.

    Returns:
        As many as there are.
    """
    found: list[int] = []
    previous = False
    for token in prompt:
        if token in _DIGITS:
            digit = token - FIRST_DIGIT
            found = [*found[:-1], 10 * found[-1] + digit] if previous else [*found, digit]
        previous = token in _DIGITS
    return tuple(found)


def is_correct(prompt: Tokens, answer: Tokens) -> bool:
    """Whether the last number before the first `END` of an answer is the sum of the prompt's.

    Args:
        prompt: tokens of a question.
        answer: tokens; what follows `END` does not matter. Without an `END` it is not correct.
    """
    answer = list(answer)
    if END not in answer:
        return False
    answer = answer[: answer.index(END)]
    return (
        bool(answer) and answer[-1] in _DIGITS and numbers_of(answer)[-1] == sum(numbers_of(prompt))
    )


def first_mistake(prompt: Tokens, answer: Tokens) -> int | None:
    """Place in an answer of its first wrong digit, or of an `END` that comes too early.

    Args:
        prompt: tokens of a question.
        answer: tokens, whole or cut off anywhere; what follows `END` does not matter.
    Returns:
        None where the digits are those of a correct working as far as it goes.
    """
    first, second, third = numbers_of(prompt)
    problem = Problem((first, second, third), NAMES[0], THINGS[0], (VERBS[0], VERBS[0]))
    right = worked_out(problem, TARGET_STYLE, random.Random(0))
    expected = [token for token in right if token in _DIGITS or token == END]
    given = [place for place, token in enumerate(answer) if token in _DIGITS or token == END]
    for place, token in zip(given, expected, strict=False):
        if answer[place] != token:
            return place
        if token == END:
            return None
    return None


def tokens_of(text: str) -> list[int]:
    """Words between spaces as tokens.

    Raises:
        ValueError: a word is not of the vocabulary.
    """
    unknown = sorted(set(text.split()) - _NUMBER_OF.keys())
    if unknown:
        raise ValueError(
            f"arithmetic: found the words {', '.join(unknown)}, expected words of WORDS; "
            "digits are words of their own"
        )
    return [_NUMBER_OF[word] for word in text.split()]


def text_of(tokens: Tokens) -> str:
    """Tokens as words between spaces."""
    return " ".join(WORDS[token] for token in tokens)

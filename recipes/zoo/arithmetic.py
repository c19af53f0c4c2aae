"""Two language models that work out sums in words: a reliable target and a hasty draft.

Both word their workings freely, with other favourites, and the draft miscalculates more often. So
most of what the target would have said otherwise is as right as what it would have said: what a
rule for accepting drafted tokens can gain by telling wording from mistakes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from optimize.capture.from_decoder import Parts, capture_decoder
from optimize.ir.decode import DecodeLoop
from optimize.ir.program import Program
from optimize.recipes.zoo.arithmetic_data import (
    END,
    LONGEST_ANSWER,
    PROMPT_TOKENS,
    VOCABULARY,
    WORDS,
)
from optimize.recipes.zoo.rotary_language_model import RotaryLanguageModel
from optimize.recipes.zoo.weights import with_weights
from optimize.recipes.zoo.word_tokenizer import TOKENIZER_FILE, word_tokenizer
from optimize.runtime.prompting import Prompting

WEIGHTS_PATH = Path(__file__).with_name("arithmetic.safetensors")
WEIGHTS_SHA256 = "b442e247a04ad631d7da6d56bce7cfb5f56ff30c7726f9b460efadc95e692f4c"
DRAFT_WEIGHTS_PATH = Path(__file__).with_name("arithmetic_draft.safetensors")
DRAFT_WEIGHTS_SHA256 = "33b9e5fcd396bb7a3147221a012870969c672fe8ebbadcef5bf8ce66cce95595"

DRAFT_ROWS = 64
"""Rows for draft tokens beyond the end of the longest answer."""

MAX_POSITIONS = PROMPT_TOKENS + LONGEST_ANSWER + DRAFT_ROWS


def new_arithmetic() -> RotaryLanguageModel:
    """The target, untrained."""
    return RotaryLanguageModel(
        VOCABULARY, dim=96, block_count=6, head_count=4, hidden=256, max_positions=MAX_POSITIONS
    )


def new_arithmetic_draft() -> RotaryLanguageModel:
    """The draft, untrained."""
    return RotaryLanguageModel(
        VOCABULARY, dim=64, block_count=2, head_count=4, hidden=160, max_positions=MAX_POSITIONS
    )


def load_arithmetic(path: Path = WEIGHTS_PATH) -> RotaryLanguageModel:
    """Loads the trained target in evaluation mode.

    Args:
        path: the weights that come with `optimize`; their digest is checked.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not the one that this code was released with.
    """
    return with_weights(new_arithmetic(), path, WEIGHTS_SHA256)


def load_arithmetic_draft(path: Path = DRAFT_WEIGHTS_PATH) -> RotaryLanguageModel:
    """Loads the trained draft in evaluation mode; arguments and errors as of `load_arithmetic`."""
    return with_weights(new_arithmetic_draft(), path, DRAFT_WEIGHTS_SHA256, "train_arithmetic")


def arithmetic_program(loop: DecodeLoop | None = None) -> Program:
    """The target as a program that answers questions in words.

    Args:
        loop: how tokens are generated; greedily, until the answer ends, where not given.
    """
    loop = loop or DecodeLoop(PROMPT_TOKENS, LONGEST_ANSWER, stop_tokens=(END,), pad_token=END)
    program = capture_decoder(Parts(load_arithmetic()), loop)
    prompting = Prompting(
        tokenizer=TOKENIZER_FILE,
        stop_tokens=(END,),
        pad_token=END,
        add_special_tokens=False,
        longest_prompt=loop.max_prompt,
        vocabulary=VOCABULARY,
    )
    return replace(program, prompting=prompting, assets={TOKENIZER_FILE: word_tokenizer(WORDS)})

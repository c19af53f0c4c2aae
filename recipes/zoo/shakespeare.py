"""A language model of Shakespeare's plays and a draft of one block that foretells it.

The target is narrow and deep, so that a token of it takes many times as long as one of the draft,
as between a large and a small model. The draft learned from the target's distributions.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from optimize.capture.from_decoder import Parts, capture_decoder
from optimize.ir.decode import DecodeLoop
from optimize.ir.program import Program
from optimize.recipes.zoo.rotary_language_model import RotaryLanguageModel
from optimize.recipes.zoo.shakespeare_data import (
    END,
    TOKENIZER_PATH,
    VOCABULARY,
    load_held_out_play,
)
from optimize.recipes.zoo.weights import with_weights
from optimize.recipes.zoo.word_tokenizer import TOKENIZER_FILE
from optimize.runtime.prompting import Prompting

WEIGHTS_PATH = Path(__file__).with_name("shakespeare.safetensors")
WEIGHTS_SHA256 = "680904f63fdaed6e2000cbdf3440162fd254f8b5bcf24f05a764c78c1ce8ea1a"
DRAFT_WEIGHTS_PATH = Path(__file__).with_name("shakespeare_draft.safetensors")
DRAFT_WEIGHTS_SHA256 = "bb409dac5ad688f3ee2579e294d5480fcbd12e85c04a8aa09905ae2f4c7e00bf"

MAX_POSITIONS = 512
WIDTH = 128
HIDDEN = 352
HEADS = 4
PASSAGE = 128
"""Tokens from one passage of the held-out play to the next."""


def new_shakespeare() -> RotaryLanguageModel:
    """The target, untrained: 24 blocks."""
    return RotaryLanguageModel(VOCABULARY, WIDTH, 24, HEADS, HIDDEN, MAX_POSITIONS)


def new_shakespeare_draft() -> RotaryLanguageModel:
    """The draft, untrained: one block of the target's width."""
    return RotaryLanguageModel(VOCABULARY, WIDTH, 1, HEADS, HIDDEN, MAX_POSITIONS)


def load_shakespeare(path: Path = WEIGHTS_PATH) -> RotaryLanguageModel:
    """Loads the trained target in evaluation mode, in single precision.

    Args:
        path: the weights that come with `optimize`, in half precision; their digest is checked.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not the one that this code was released with.
    """
    return with_weights(new_shakespeare(), path, WEIGHTS_SHA256)


def load_shakespeare_draft(path: Path = DRAFT_WEIGHTS_PATH) -> RotaryLanguageModel:
    """Loads the trained draft in evaluation mode; arguments and errors as of `load_shakespeare`."""
    return with_weights(new_shakespeare_draft(), path, DRAFT_WEIGHTS_SHA256)


def shakespeare_program(loop: DecodeLoop | None = None) -> Program:
    """The target as a program that goes on with a text.

    Args:
        loop: how tokens are generated; up to 256 greedy ones after up to 256 where not given.
    """
    loop = loop or DecodeLoop(max_prompt=256, max_new_tokens=256, stop_tokens=(END,), pad_token=END)
    program = capture_decoder(Parts(load_shakespeare()), loop)
    prompting = Prompting(
        tokenizer=TOKENIZER_FILE,
        stop_tokens=(END,),
        pad_token=END,
        add_special_tokens=False,
        longest_prompt=loop.max_prompt,
        vocabulary=VOCABULARY,
    )
    assets = {TOKENIZER_FILE: TOKENIZER_PATH.read_bytes()}
    return replace(program, prompting=prompting, assets=assets)


def held_out_prompts(count: int, length: int, first: int = 0) -> torch.Tensor:
    """Beginnings of passages of the held-out play, [count, length], int64.

    Args:
        count: passages, one every 128 tokens.
        length: tokens of each.
        first: number of the first passage.
    Raises:
        ValueError: the play has not as many.
    """
    play = load_held_out_play()
    starts = PASSAGE * torch.arange(first, first + count)
    if first < 0 or (count and int(starts[-1]) + length > len(play)):
        raise ValueError(
            f"held_out_prompts: found passages {first} to {first + count - 1} of {length} tokens, "
            f"expected them within the {len(play)} tokens of the play; ask for fewer or shorter "
            "ones"
        )
    return play[starts[:, None] + torch.arange(length)]

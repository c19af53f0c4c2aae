"""A masked-diffusion language model that adds numbers of ten digits."""

from __future__ import annotations

from pathlib import Path

from optimize.capture.from_masked import capture_masked_model, with_prompts
from optimize.capture.prompt_template import Template
from optimize.ir.program import Program
from optimize.ir.unmask import UnmaskLoop
from optimize.recipes.zoo.long_sums_data import (
    ANSWER_TOKENS,
    END,
    PROMPT_TOKENS,
    VOCABULARY,
    WORDS,
)
from optimize.recipes.zoo.masked_language_model import MaskedLanguageModel
from optimize.recipes.zoo.weights import with_weights
from optimize.recipes.zoo.word_tokenizer import word_tokenizer
from optimize.runtime.prompting import PROMPT

WEIGHTS_PATH = Path(__file__).with_name("long_sums.safetensors")
WEIGHTS_SHA256 = "a8caa0cf0c69c8ee166127dd65536ca9dcc55d082aeaf4651d5a8a70b4951c62"


def new_long_sums() -> MaskedLanguageModel:
    """The model, untrained."""
    return MaskedLanguageModel(VOCABULARY, dim=96, block_count=4, head_count=4, hidden=256)


def load_long_sums(path: Path = WEIGHTS_PATH) -> MaskedLanguageModel:
    """Loads the trained model in evaluation mode, in single precision.

    Args:
        path: the weights that come with `optimize`, in half precision; their digest is checked.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not the one that this code was released with.
    """
    return with_weights(new_long_sums(), path, WEIGHTS_SHA256)


def long_sums_program(loop: UnmaskLoop | None = None) -> Program:
    """The model as a program that answers prompts such as "0 0 … 7 + 0 0 … 5 =".

    Args:
        loop: how text is filled in; where not given a token at each call, the likeliest first, in
            three blocks of eight.
    """
    loop = loop or UnmaskLoop(
        mask_id=VOCABULARY,
        length=ANSWER_TOKENS,
        block_length=ANSWER_TOKENS // 3,
        max_prompt=PROMPT_TOKENS,
        stop_tokens=(END,),
    )
    program = capture_masked_model(load_long_sums(), loop=loop)
    return with_prompts(program, word_tokenizer(WORDS), Template(PROMPT, add_special_tokens=False))

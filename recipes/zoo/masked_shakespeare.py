"""A masked-diffusion language model of Shakespeare's plays, over the tokens of zoo:shakespeare."""

from __future__ import annotations

from pathlib import Path

from optimize.capture.from_masked import capture_masked_model, with_prompts
from optimize.capture.prompt_template import Template
from optimize.ir.decode import Sampling
from optimize.ir.program import Program
from optimize.ir.unmask import UnmaskLoop
from optimize.recipes.zoo.masked_language_model import MaskedLanguageModel
from optimize.recipes.zoo.shakespeare_data import TOKENIZER_PATH, VOCABULARY
from optimize.recipes.zoo.weights import with_weights
from optimize.runtime.prompting import PROMPT

WEIGHTS_PATH = Path(__file__).with_name("masked_shakespeare.safetensors")
WEIGHTS_SHA256 = "68acf1a0cf1b034143dfe39f843ba17baea3169f7718416ae84f25d27a3c5823"
LENGTH = 256
"""Tokens of the texts that it was trained on."""


def new_masked_shakespeare() -> MaskedLanguageModel:
    """The model, untrained."""
    return MaskedLanguageModel(VOCABULARY, dim=128, block_count=6, head_count=4, hidden=352)


def load_masked_shakespeare(path: Path = WEIGHTS_PATH) -> MaskedLanguageModel:
    """Loads the trained model in evaluation mode, in single precision.

    Args:
        path: the weights that come with `optimize`, in half precision; their digest is checked.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not the one that this code was released with.
    """
    return with_weights(new_masked_shakespeare(), path, WEIGHTS_SHA256)


def masked_shakespeare_program(loop: UnmaskLoop | None = None) -> Program:
    """The model as a program that writes, after a prompt or without one.

    Args:
        loop: how text is filled in; where not given 128 tokens behind a prompt, drawn one at each
            call in random order.
    """
    loop = loop or UnmaskLoop(
        mask_id=VOCABULARY,
        length=LENGTH // 2,
        remasking="random",
        sampling=Sampling(1.0, top_p=None),
        max_prompt=LENGTH // 2,
    )
    program = capture_masked_model(load_masked_shakespeare(), loop=loop)
    if not loop.max_prompt:
        return program
    return with_prompts(
        program, TOKENIZER_PATH.read_bytes(), Template(PROMPT, add_special_tokens=False)
    )

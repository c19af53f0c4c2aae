"""Words for the tokens of the digit finder, so that it is asked in text.

session(image=picture, prompt="find 7 end")["text"]     "row2 column3"
"""

from __future__ import annotations

from dataclasses import replace

from optimize.capture.from_decoder import capture_decoder
from optimize.ir.decode import DecodeLoop
from optimize.ir.program import Program
from optimize.recipes.zoo.digits_data import CLASS_COUNT
from optimize.recipes.zoo.find_the_digit import load_find_the_digit
from optimize.recipes.zoo.find_the_digit_data import (
    ANSWER_TOKENS,
    CELLS,
    END,
    PROMPT_TOKENS,
    SCENE_SIZE,
    VOCABULARY,
)
from optimize.recipes.zoo.word_tokenizer import TOKENIZER_FILE, word_tokenizer
from optimize.runtime.prompting import ImageInput, Prompting

WORDS = (
    *("bos", "find", "read", "answer", "end"),
    *(str(digit) for digit in range(CLASS_COUNT)),
    *(f"row{row}" for row in range(CELLS)),
    *(f"column{column}" for column in range(CELLS)),
)
"""Token number → its word."""


def find_the_digit_program() -> Program:
    """The digit finder as a program that takes a picture of 48x48 pixels and a question."""
    loop = DecodeLoop(PROMPT_TOKENS, ANSWER_TOKENS, stop_tokens=(END,), pad_token=END)
    program = capture_decoder(load_find_the_digit(), loop)
    image = ImageInput(
        field="pixel_values",
        channels=1,
        height=SCENE_SIZE,
        width=SCENE_SIZE,
        rescale=1 / 255,
        mean=(0.5,),
        std=(0.5,),
        resample="bilinear",
    )
    prompting = Prompting(
        tokenizer=TOKENIZER_FILE,
        template="bos <image> {prompt} answer",
        image=image,
        image_offset=1,
        stop_tokens=(END,),
        pad_token=END,
        add_special_tokens=False,
        longest_prompt=PROMPT_TOKENS,
        vocabulary=VOCABULARY,
    )
    return replace(program, prompting=prompting, assets={TOKENIZER_FILE: word_tokenizer(WORDS)})

"""A captured LLaVA of random weights, with as many layers as pruning needs."""

from functools import cache, partial

from optimize.capture.from_transformers import capture_language_model
from optimize.ir.decode import DecodeLoop
from optimize.ir.program import Program
from optimize.recipes.zoo.language_families import LanguageExample, drawn, language_example, llava

LAYERS = 4
LOOP = DecodeLoop(max_prompt=24, max_new_tokens=10)


def tiny_llava() -> LanguageExample:
    """Four layers, 16 image tokens of 4 x 4 behind two text tokens."""
    return drawn(partial(llava, LAYERS))


@cache
def llava_program() -> Program:
    """The captured model, without a tokenizer."""
    example = tiny_llava()
    return capture_language_model(example.model, loop=LOOP, image_offset=example.prefix)


@cache
def llama_program() -> Program:
    """A captured text model, without a tokenizer."""
    return capture_language_model(language_example("llama").model, loop=LOOP)

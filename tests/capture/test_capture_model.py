"""One entry for every kind of model, and clear words where model and loop do not fit."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from optimize.api import optimize
from optimize.capture.capture_model import capture_model, is_language_model
from optimize.capture.language_parts import parts_of
from optimize.ir.decode import DecodeLoop
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.errors import InputModelError
from optimize.ir.program import Program
from optimize.recipes.zoo.language_families import language_example
from optimize.recipes.zoo.tiny_decoder import tiny_model
from tests.passes.tiny_llava import LOOP, tiny_llava

transformers = pytest.importorskip("transformers")


def test_a_model_with_parts_is_captured_with_a_decode_loop() -> None:
    model = tiny_model(grid=(3, 4))
    program = optimize(
        model,
        {"passes": ["prune_visual_tokens"]},
        loop=DecodeLoop(max_prompt=12, max_new_tokens=4),
        progress=False,
    )
    assert program.history[0].name == "prune_visual_tokens" and program.decoding is not None


def test_transformers_models_their_folders_and_programs_need_no_loop(tmp_path: Path) -> None:
    model = language_example("gpt2").model
    model.save_pretrained(tmp_path)
    assert is_language_model(model) and is_language_model(tmp_path)
    program = capture_model(str(tmp_path))
    assert isinstance(program, Program) and capture_model(program) is program
    # 128 positions, shared as 512 and 256 are.
    assert program.decoding is not None and program.decoding.prompt_range == (2, 86)
    assert program.decoding.loop.max_new_tokens == 42
    assert program.decoding.loop.stop_tokens == (2,)


def test_example_inputs_of_a_language_model_are_request_fields() -> None:
    given = {"input_ids": torch.full((1, 5), 7), "pixels": torch.zeros(1)}
    with pytest.raises(InputModelError, match="found 'pixels', expected some of .*pixel_values"):
        capture_model(tiny_llava().model, given, loop=LOOP)


def with_parts() -> Any:
    example = tiny_llava()
    return parts_of(example.model, prefix=example.prefix)


def no_decoder() -> Any:
    return SimpleNamespace(decoder=nn.Linear(2, 2), vision=None, image_shape=None)


def headless() -> Any:
    return language_example("llama").model.model


@pytest.mark.parametrize(
    ("make", "loop", "message"),
    [
        (lambda: nn.Linear(2, 2), LOOP, "found a DecodeLoop for Linear, expected a transformers"),
        (lambda: "some/where", LOOP, "found a DecodeLoop for the path 'some/where', expected"),
        (lambda: tiny_llava().model, DenoiseLoop(), "found a DenoiseLoop for a language model"),
        (with_parts, None, "loop: found none for LanguageParts, .*expected a DecodeLoop"),
        (no_decoder, LOOP, "decoder: found Linear without image_offset, image_tokens, attention"),
        (headless, None, "found LlamaModel, expected .*a language-modelling head"),
        (lambda: nn.Linear(2, 2), None, "example_inputs: found nothing, expected a dict"),
    ],
    ids=["module", "path", "denoise", "no-loop", "no-decoder", "headless", "denoiser"],
)
def test_wrong_combinations_are_named(make: Any, loop: Any, message: str) -> None:
    with pytest.raises(InputModelError, match=message):
        capture_model(make(), loop=loop)

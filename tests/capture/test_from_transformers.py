"""Transformers language models through the front door: answers equal those of `generate`."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optimize.capture.from_transformers import capture_language_model
from optimize.ir.decode import DecodeLoop
from optimize.ir.errors import InputModelError
from optimize.ir.program import Program
from optimize.recipes.zoo.language_families import (
    LANGUAGE_FAMILIES,
    LanguageExample,
    language_example,
    reference_inputs,
)
from optimize.runtime.errors import RuntimeInputError
from optimize.runtime.session import load
from tests.capture.language_folder import processor, save_tiny_llava, word_tokenizer
from tests.passes.tiny_llava import LOOP, tiny_llava

transformers = pytest.importorskip("transformers")

# Capturing takes seconds a family: one of each kind is in `make test-fast`.
QUICK = ("gpt2", "llava", "paligemma")
BUNDLED = ("llama", "llava", "paligemma", "qwen2_vl")
LENGTHS = (9, 6, 7)
NEW = 6


def slow_but(quick: tuple[str, ...], names: Any) -> list[Any]:
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


@cache
def captured(name: str) -> tuple[LanguageExample, Program]:
    example = language_example(name)
    program = capture_language_model(
        example.model,
        loop=DecodeLoop(max_prompt=12, max_new_tokens=NEW),
        image_size=example.image_size,
        image_offset=example.prefix,
    )
    return example, program


def request(example: LanguageExample) -> dict[str, torch.Tensor]:
    """Three prompts of different lengths, padded on the right with tokens that must not matter."""
    generator = torch.Generator().manual_seed(1)
    given = {
        "input_ids": torch.randint(3, 90, (len(LENGTHS), LENGTHS[0]), generator=generator),
        "lengths": torch.tensor(LENGTHS),
    }
    if example.image_size is not None:
        size = (len(LENGTHS), 3, *example.image_size)
        given["pixel_values"] = torch.randn(size, generator=generator)
    return given


@cache
def generated(name: str) -> list[list[int]]:
    """What the library generates for each prompt alone, the stop token included."""
    example, _ = captured(name)
    given, answers = request(example), []
    for sample, length in enumerate(LENGTHS):
        ids = given["input_ids"][sample : sample + 1, :length]
        pixels = given.get("pixel_values")
        one = None if pixels is None else pixels[sample : sample + 1]
        inputs = reference_inputs(example.model, ids, one, example.prefix)
        made = example.model.generate(**inputs, do_sample=False, max_new_tokens=NEW)
        answers.append(made[0, inputs["input_ids"].shape[1] :].tolist())
    return answers


def answers(tokens: Any) -> list[list[int]]:
    """Tokens up to the first stop token (2)."""
    rows = np.asarray(tokens).tolist()
    return [row[: row.index(2) + 1] if 2 in row else row for row in rows]


@pytest.mark.parametrize("name", slow_but(QUICK, LANGUAGE_FAMILIES))
def test_tokens_equal_those_of_generate(name: str) -> None:
    example, program = captured(name)
    found = answers(program(**request(example))["tokens"])
    assert found == generated(name)
    assert len({tuple(row) for row in found}) == len(LENGTHS)


@pytest.mark.parametrize("name", slow_but(("llava",), BUNDLED))
def test_bundles_generate_the_same_tokens(name: str, tmp_path: Path) -> None:
    example, program = captured(name)
    program.export(tmp_path / "bundle")
    fields = {key: value.numpy() for key, value in request(example).items()}
    with load(tmp_path / "bundle") as session:
        assert answers(session(**fields)["tokens"]) == generated(name)


def test_padding_and_company_change_nothing() -> None:
    example, program = captured("llava")
    given = request(example)
    together = answers(program(**given)["tokens"])
    for sample, length in enumerate(LENGTHS):
        alone = {"input_ids": given["input_ids"][sample : sample + 1, :length]}
        alone["pixel_values"] = given["pixel_values"][sample : sample + 1]
        assert answers(program(**alone)["tokens"]) == [together[sample]]


@cache
def asked(tmp: Path) -> Program:
    return capture_language_model(save_tiny_llava(tmp), loop=LOOP)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A folder with tokenizer and processor, captured."""
    return asked(tmp_path_factory.mktemp("llava"))


PIXELS = np.zeros((1, 3, 24, 24), dtype=np.float32)
IMAGE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)


def test_a_prompt_and_a_picture_are_what_the_processor_makes_of_them(program: Program) -> None:
    """The library's processor, model and tokenizer, against one call."""
    found = program(prompt="w7 w9 w11", image=IMAGE, max_new_tokens=5)
    kit, example = processor(), tiny_llava()
    text = "w4 <image> w7 w9 w11 w5"
    given = kit(images=IMAGE, text=text, return_tensors="pt")
    made = example.model.generate(**given, do_sample=False, max_new_tokens=5)
    expected = made[0, given["input_ids"].shape[1] :]
    assert found["tokens"][0].tolist() == expected.tolist()
    assert found["text"] == kit.tokenizer.decode(expected, skip_special_tokens=True)


def test_prompting_comes_from_tokenizer_processor_and_model(program: Program) -> None:
    prompting = program.prompting
    assert prompting is not None and prompting.image is not None
    assert prompting.template == "w4 <image> {prompt} w5" and prompting.add_special_tokens
    assert (prompting.image_offset, prompting.stop_tokens, prompting.pad_token) == (2, (2,), 0)
    assert (prompting.image.height, prompting.image.width) == (24, 24)
    assert prompting.longest_prompt == 24 and prompting.vocabulary == 96
    assert set(program.assets) == {"tokenizer.json"} and not program.notes


def test_a_bundle_answers_prompts(program: Program, tmp_path: Path) -> None:
    prompts, images = ["w7", "w8 w9 w10 w11"], [IMAGE, 255 - IMAGE]
    expected = program(prompt=prompts, image=images)
    program.export(tmp_path / "bundle")
    with load(tmp_path / "bundle") as session:
        assert session(prompt=prompts, image=images)["text"] == expected["text"]
        assert "".join(session.stream(prompt="w7", image=IMAGE)) == expected["text"][0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "w7"}, "image: found none, expected one for each prompt"),
        ({"prompt": "w7", "image": [IMAGE, IMAGE]}, "found 2 pictures for 1 prompt, expected one"),
        ({"prompt": "w7 " * 30, "image": IMAGE}, "found 33 tokens .*expected at most 24; shorten"),
        ({"input_ids": [[5, 6, 7, 8]]}, "pixel_values"),
        ({"input_ids": [[5, 6, 7, 96]], "pixel_values": PIXELS}, "input_ids: "),
        ({"input_ids": [[5, 6, 7, -1]], "pixel_values": PIXELS}, "input_ids: "),
        (
            {
                "input_ids": [[5, 6, 7, 8]],
                "lengths": [5],
                "pixel_values": PIXELS,
            },
            "lengths: found ",
        ),
        ({"input_ids": [[5] * 25], "pixel_values": PIXELS}, "prompt"),
    ],
    ids=["no-image", "two", "long", "no-pixels", "over", "under", "lengths", "long-ids"],
)
def test_refuses_requests_that_do_not_fit(
    program: Program, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(RuntimeInputError, match=message):
        program(**given)


def test_a_text_model_takes_no_image_and_no_template_with_one() -> None:
    example = language_example("gpt2")
    program = capture_language_model(example.model, loop=LOOP, tokenizer=word_tokenizer())
    assert program.prompting is not None and program.prompting.template == "{prompt}"
    with pytest.raises(RuntimeInputError, match="expected none: this model reads text only"):
        program(prompt="w7", image=IMAGE)
    with pytest.raises(InputModelError, match='"<image>" 1 times .*the model takes no image'):
        capture_language_model(
            example.model, tokenizer=word_tokenizer(), template="<image>{prompt}"
        )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("<image>", r'found "\{prompt\}" 0 times .*expected it once'),
        ("{prompt}", 'found "<image>" 0 times .*expected it once'),
        ("{prompt}<image>", r'found "\{prompt\}" before "<image>"'),
    ],
)
def test_refuses_templates_without_their_places(template: str, message: str) -> None:
    with pytest.raises(InputModelError, match=message):
        capture_language_model(tiny_llava().model, tokenizer=word_tokenizer(), template=template)


def test_refuses_tokenizers_that_are_not_fast_and_templates_without_one() -> None:
    model = language_example("llama").model
    with pytest.raises(InputModelError, match=r"tokenizer: found object, .*use_fast=True"):
        capture_language_model(model, tokenizer=object())
    with pytest.raises(InputModelError, match="template: found one without a tokenizer"):
        capture_language_model(model, template="{prompt}")


def test_refuses_more_rows_than_there_are_positions() -> None:
    loop = DecodeLoop(max_prompt=100, max_new_tokens=20)
    message = r"found max_prompt 100 \+ 16 image tokens \+ max_new_tokens 20 = 136 rows, expected"
    with pytest.raises(InputModelError, match=message):
        capture_language_model(tiny_llava().model, loop=loop)


def test_refuses_an_encoder_decoder_in_a_folder(tmp_path: Path) -> None:
    transformers.T5Config().save_pretrained(tmp_path)
    with pytest.raises(InputModelError, match="found t5 with an encoder and a decoder"):
        capture_language_model(tmp_path)


def test_a_chat_template_that_has_no_picture_is_not_used(tmp_path: Path) -> None:
    kit = processor("{% for message in messages %}{{ message['role'] }}{% endfor %}")
    program = capture_language_model(tiny_llava().model, loop=LOOP, processor=kit)
    assert program.prompting is not None
    assert program.prompting.template == "<image>{prompt}" and program.prompting.image_offset == 1
    assert "the chat template does not have a picture and then a prompt" in program.notes[-1]

"""What prompts are put into, for processors that write their pictures in different ways."""

from typing import Any

import pytest

from optimize.capture.prompt_template import (
    Template,
    template_of,
    tokenizer_file,
    tokens_before_image,
)

pytest.importorskip("transformers")


class Tokenizer:
    """Only its first token is asked for."""

    bos_token = "<bos>"


class Processor:
    """A processor that writes one question as it is told."""

    chat_template = "given"

    def __init__(self, text: str, **marks: str) -> None:
        self.text = text
        self.__dict__.update(marks)

    def apply_chat_template(self, conversation: Any, **options: Any) -> str:
        (message,) = conversation
        assert [item["type"] for item in message["content"]] == ["image", "text"]
        assert options == {"add_generation_prompt": True, "tokenize": False}
        return self.text


class PaliGemmaProcessor:
    """Has no chat template."""


EDGES = {"image_token": "<image>", "fake_image_token": "<edge>"}
QWEN = "<|vision_start|><|image_pad|><|vision_end|>{prompt}"


@pytest.mark.parametrize(
    ("processor", "expected", "specials"),
    [
        (
            Processor(QWEN, image_token="<|image_pad|>"),
            QWEN.replace("<|image_pad|>", "<image>"),
            True,
        ),
        (Processor("<bos>Q <image>{prompt} A"), "<bos>Q <image>{prompt} A", False),
        (
            Processor("Q:<image>{prompt}", **EDGES, global_image_token="<all>"),
            "Q:<edge><all><image><edge>{prompt}",
            True,
        ),
        (
            Processor("Q:<image>{prompt}", **EDGES, global_image_tag="<all>"),
            "Q:<edge><all><image><edge>{prompt}",
            True,
        ),
        (PaliGemmaProcessor(), "<image><bos>{prompt}\n", False),
    ],
    ids=["qwen", "bos", "smolvlm", "idefics", "paligemma"],
)
def test_templates_of_processors(processor: Any, expected: str, specials: bool) -> None:
    found = template_of(Tokenizer(), processor, None, has_image=True)
    assert (found.text, found.add_special_tokens, found.note) == (expected, specials, None)


@pytest.mark.parametrize("text", ["{prompt}", "{prompt}<image>", "<image><image>{prompt}"])
def test_other_chat_templates_are_not_used_and_that_is_said(text: str) -> None:
    found = template_of(Tokenizer(), Processor(text), None, has_image=True)
    assert found.text == "<image>{prompt}"
    assert "does not have a picture and then a prompt, each once" in str(found.note)


def test_a_chat_template_that_fails_says_why() -> None:
    processor = Processor("")
    processor.apply_chat_template = lambda *_, **__: 1 / 0  # type: ignore[method-assign]
    note = template_of(Tokenizer(), processor, None, has_image=True).note
    assert "the chat template fails: division by zero" in str(note)


@pytest.mark.parametrize(
    ("text", "specials", "count"),
    [
        ("<image>{prompt}", True, 1),
        ("w4 w6 <image>{prompt}", True, 3),
        ("w4 w6 <image>{prompt}", False, 2),
        ("<image><s>{prompt}", False, 0),
    ],
)
def test_tokens_before_an_image(text: str, specials: bool, count: int) -> None:
    from tests.capture.language_folder import word_tokenizer

    content = tokenizer_file(word_tokenizer())
    assert content is not None
    assert tokens_before_image(content, Template(text, specials)) == count

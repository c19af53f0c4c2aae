"""What a prompt is put into: a template from a processor, and the tokens before its picture."""

from dataclasses import dataclass
from typing import Any

from optimize.ir.errors import InputModelError
from optimize.runtime.prompting import IMAGE, PROMPT
from optimize.runtime.tokenizer_file import parse_tokenizer

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Template:
    """A template, and how it was come by.

    Attributes:
        text: with "{prompt}" and, for a model with images, "<image>".
        add_special_tokens: whether the tokenizer puts its special tokens at the start.
        note: what a user should know of it; None for nothing.
    """

    text: str
    add_special_tokens: bool = True
    note: str | None = None


def template_of(tokenizer: Any, processor: Any, given: str | None, has_image: bool) -> Template:
    """The template that was given, or the one that the processor of a model with images uses.

    A text model's prompts are taken as they are: whether it is one to chat with is not known.
    """
    if given is not None:
        _check_template(given, has_image)
        return Template(given, not _begins_with_bos(given, tokenizer))
    if not has_image:
        return Template(PROMPT)
    if getattr(processor, "chat_template", None):
        return _from_chat(tokenizer, processor)
    if hasattr(processor, "image_seq_length") and type(processor).__name__.startswith("PaliGemma"):
        # The start of the text comes after the picture, and a line break ends a prompt.
        return Template(f"{IMAGE}{tokenizer.bos_token}{PROMPT}\n", add_special_tokens=False)
    return Template(f"{IMAGE}{PROMPT}", note=f'prompts are put into "{IMAGE}{PROMPT}"')


def _check_template(template: str, has_image: bool) -> None:
    wanted = {PROMPT: 1, IMAGE: int(has_image)}
    for mark, count in wanted.items():
        if template.count(mark) != count:
            raise InputModelError(
                f'template: found "{mark}" {template.count(mark)} times in {template[:80]!r}, '
                f"expected it {'once' if count else 'not at all: the model takes no image'}"
            )
    if has_image and template.index(PROMPT) < template.index(IMAGE):
        raise InputModelError(
            f'template: found "{PROMPT}" before "{IMAGE}" in {template[:80]!r}, expected it after'
        )


def _from_chat(tokenizer: Any, processor: Any) -> Template:
    """One question about one picture, as the chat template of a processor writes it."""
    fallback = f"{IMAGE}{PROMPT}"
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    try:
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    # Chat templates are programs that come with a model; anything may go wrong in them.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        why = f"the chat template fails: {reason}"
        return Template(fallback, note=f'prompts are put into "{fallback}": {why}')
    mark = getattr(processor, "image_token", IMAGE)
    mark = getattr(mark, "content", mark)
    if text.count(mark) != 1 or text.count(PROMPT) != 1 or text.index(PROMPT) < text.index(mark):
        why = "the chat template does not have a picture and then a prompt, each once"
        return Template(fallback, note=f'prompts are put into "{fallback}": {why}')
    text = text.replace(mark, _around(processor))
    return Template(text, not _begins_with_bos(text, tokenizer))


def _around(processor: Any) -> str:
    """The picture with what a processor puts around the tokens of a single tile."""
    edge, tag = (getattr(processor, name, "") for name in ("fake_image_token", "global_image_tag"))
    edge, tag = (getattr(item, "content", item) for item in (edge, tag))
    return f"{edge}{tag}{IMAGE}{edge}"


def _begins_with_bos(text: str, tokenizer: Any) -> bool:
    bos = getattr(tokenizer, "bos_token", None)
    return bos is not None and text.startswith(str(bos))


def tokenizer_file(tokenizer: Any) -> bytes | None:
    """The content of a tokenizer.json; None of a tokenizer that has none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else str(backend.to_str()).encode()


def tokens_before_image(tokenizer: bytes, template: Template) -> int:
    """How many tokens stand before the picture, special tokens at the start included.

    Raises:
        CorruptBundle: the content is no tokenizer.
    """
    parsed: Any = parse_tokenizer(TOKENIZER_FILE, tokenizer)
    before, _, after = template.text.rpartition(IMAGE)
    encoded = parsed.encode(before or after, add_special_tokens=template.add_special_tokens)
    own = [index for index, put in enumerate(encoded.special_tokens_mask) if not put]
    if not own:
        return 0
    return own[-1] + 1 if before else own[0]

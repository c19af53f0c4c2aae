"""Prompts and pictures → request, generated tokens → text, as a `Prompting` says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.runtime.detokenizing import TextStream, text_of
from optimize.runtime.errors import CorruptBundle, RuntimeInputError
from optimize.runtime.loop import Signature
from optimize.runtime.pixels import pixel_values
from optimize.runtime.prompting import ASKED, IMAGE, PROMPT, Prompting
from optimize.runtime.tokenizer_file import check_tokenizer_size, parse_tokenizer


@dataclass(frozen=True)
class Asked:
    """A request of plain fields, made from prompts where there were any.

    `prompts` is how many prompts were given as a list, None for one given as it is, and 0 where
    the request had none.
    """

    fields: dict[str, Any]
    prompts: int | None = 0

    def one(self) -> None:
        """Refuses several prompts, whose answers cannot be one stream of text."""
        if self.prompts is not None and self.prompts > 1:
            raise RuntimeInputError(
                f"prompt: found {self.prompts} prompts, expected one to stream; ask one at a time, "
                "or call the session for all answers at once"
            )


class Prompter:
    """The prompts of one bundle or program; several threads may use it.

    Args:
        prompting: what to do.
        signature: of the requests.
        tokenizer: content of the tokenizer file; parsed when first needed.
    Raises:
        UnsafeBundle: the tokenizer file is too large.
    """

    def __init__(self, prompting: Prompting, signature: Signature, tokenizer: bytes) -> None:
        check_tokenizer_size(prompting.tokenizer, len(tokenizer))
        self.prompting = prompting
        self._content = tokenizer
        self._parsed: Any = None
        fields = {item.name: item for item in signature.inputs}
        columns = fields[prompting.tokens].shape[1]
        if isinstance(columns, int):
            self._shortest = self._longest = columns
        else:
            low, high = signature.dimensions[columns]
            self._shortest, self._longest = low, high
        self._longest = min(self._longest, prompting.longest_prompt)

    def asked(self, request: Mapping[str, Any]) -> Asked:
        """The request with fields in the place of `prompt` and `image`.

        Raises:
            RuntimeInputError: what was asked does not fit the model.
            ResourceError: a library is not installed.
            CorruptBundle: the tokenizer file cannot be used.
        """
        plain = {name: item for name, item in request.items() if name not in ASKED}
        prompt, image = request.get("prompt"), request.get("image")
        if prompt is None:
            if image is not None:
                raise RuntimeInputError("image: found no prompt with it; give `prompt`, too")
            return Asked(plain)
        prompts = _prompts(prompt)
        made = self._tokens(prompts) | self._pixels(image, len(prompts))
        twice = sorted(name for name in made if plain.get(name) is not None)
        if twice:
            raise RuntimeInputError(
                f"request: found both {twice[0]!r} and what it is made from; give only one of them"
            )
        return Asked(plain | made, None if isinstance(prompt, str) else len(prompts))

    def answer(self, asked: Asked, results: Mapping[str, Any]) -> dict[str, Any]:
        """The results, with the texts of the generated tokens where prompts were asked."""
        if asked.prompts == 0:
            return dict(results)
        rows = np.asarray(results[self.prompting.result]).tolist()
        stop_tokens, tokenizer = self.prompting.stop_tokens, self._tokenizer()
        texts = [text_of(tokenizer, row, stop_tokens) for row in rows]
        return {**results, "text": texts[0] if asked.prompts is None else texts}

    def stream(self) -> TextStream:
        """Makes pieces of text from the tokens of one answer."""
        return TextStream(self._tokenizer(), self.prompting.stop_tokens)

    def _tokens(self, prompts: list[str]) -> dict[str, NDArray[np.int64]]:
        rows = [self._encoded(prompt) for prompt in prompts]
        lengths = [len(row) for row in rows]
        longest = max(lengths)
        if longest > self._longest:
            raise RuntimeInputError(
                f"prompt: found {longest} tokens with the template, expected at most "
                f"{self._longest}; shorten it, or export with a longer prompt"
            )
        if self.prompting.lengths is None and min(lengths) < longest:
            raise RuntimeInputError(
                f"prompt: found prompts of {min(lengths)} to {longest} tokens, expected as many in "
                "each: this model sees no padding; ask those of one length together"
            )
        shape = (len(rows), max(longest, self._shortest))
        tokens = np.full(shape, self.prompting.pad_token, dtype=np.int64)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = row
        made = {self.prompting.tokens: tokens}
        if self.prompting.lengths is not None:
            made[self.prompting.lengths] = np.asarray(lengths, dtype=np.int64)
        return made

    def _encoded(self, prompt: str) -> list[int]:
        """The tokens of a prompt in its template, those before the picture first."""
        before, picture, after = self.prompting.template.rpartition(IMAGE)
        if self.prompting.image is None:
            before, after = "", before + picture + after
        start, end = after.split(PROMPT)
        front, head = self._pieces(before)
        specials, tail = self._pieces(start + prompt + end)
        if not tail:
            raise RuntimeInputError(f"prompt: found no tokens in {prompt[:50]!r}, expected some")
        head = (front if head else specials) + head
        if self.prompting.image is not None and len(head) != self.prompting.image_offset:
            raise CorruptBundle(
                f"{self.prompting.tokenizer}: found {len(head)} tokens before the picture, "
                f"expected {self.prompting.image_offset}; export the bundle again"
            )
        tokens = head + tail
        if max(tokens) >= self.prompting.vocabulary:
            raise CorruptBundle(
                f"{self.prompting.tokenizer}: found token {max(tokens)}, expected one of the "
                f"model's {self.prompting.vocabulary}; export the bundle again"
            )
        return tokens

    def _pieces(self, text: str) -> tuple[list[int], list[int]]:
        """The special tokens put before a text, and its own; those put after it are left out."""
        if not text:
            return [], []
        special, tokenizer = self.prompting.add_special_tokens, self._tokenizer()
        try:
            encoded = tokenizer.encode(text, add_special_tokens=special)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RuntimeInputError(
                f"prompt: found text that cannot be tokenized ({reason}): {text[:50]!r}"
            ) from error
        ids, mask = encoded.ids, encoded.special_tokens_mask
        own = [index for index, put in enumerate(mask) if not put]
        return (ids[: own[0]], ids[own[0] : own[-1] + 1]) if own else ([], [])

    def _pixels(self, image: Any, prompts: int) -> dict[str, NDArray[np.float32]]:
        expected = self.prompting.image
        if expected is None:
            if image is not None:
                raise RuntimeInputError(
                    "image: found one, expected none: this model reads text only"
                )
            return {}
        if image is None:
            raise RuntimeInputError("image: found none, expected one for each prompt")
        several = isinstance(image, (list, tuple))
        if several and len(image) != prompts:
            raise RuntimeInputError(
                f"image: found {len(image)} pictures for {prompts} "
                f"{'prompt' if prompts == 1 else 'prompts'}, expected one for each"
            )
        if several:
            values = np.stack([pixel_values(item, expected) for item in image])
        else:
            values = np.repeat(pixel_values(image, expected)[None], prompts, axis=0)
        return {expected.field: values}

    def _tokenizer(self) -> Any:
        """The tokenizer, parsed once; by two threads at worst."""
        if self._parsed is None:
            self._parsed = parse_tokenizer(self.prompting.tokenizer, self._content)
        return self._parsed


def without_prompting(request: Mapping[str, Any], signature: Signature) -> Asked:
    """The request as it is, where a model takes no prompts.

    Raises:
        RuntimeInputError: it has one all the same.
    """
    fields = {item.name for item in signature.inputs}
    for name in ASKED:
        if name not in fields and request.get(name) is not None:
            raise RuntimeInputError(
                f"{name}: found one, expected some of {', '.join(sorted(fields))}: there is no "
                "tokenizer here; give the fields, or export with one"
            )
    return Asked(dict(request))


def _prompts(prompt: Any) -> list[str]:
    given = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(given, (list, tuple)):
        raise RuntimeInputError(f"prompt: found {type(prompt).__name__}, expected text or a list")
    if not given:
        raise RuntimeInputError("prompt: found an empty list, expected at least one prompt")
    for item in given:
        if not isinstance(item, str):
            raise RuntimeInputError(f"prompt: found {type(item).__name__} in a list, expected text")
        if not item.strip():
            raise RuntimeInputError(f"prompt: found {item!r}, expected some text")
    return list(given)

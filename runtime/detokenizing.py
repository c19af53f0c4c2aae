"""Tokens as text, whole or piece by piece as they come."""

import re
from collections.abc import Collection, Iterable
from typing import Any

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_WINDOW, _KEPT = 24, 6


def text_of(tokenizer: Any, tokens: Iterable[int], stop_tokens: Collection[int]) -> str:
    """The text of an answer; the first stop token and what follows it are left out."""
    shown: list[int] = []
    for token in tokens:
        if token in stop_tokens:
            break
        shown.append(int(token))
    return str(tokenizer.decode(shown))


class TextStream:
    """The text of one answer, token by token: the pieces together are what `text_of` gives.

    A piece may be empty: a character can take several tokens, and comes with the last of them.
    `finished` is set by a stop token.
    """

    def __init__(self, tokenizer: Any, stop_tokens: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._stop_tokens = stop_tokens
        # Tokens are decoded together with some before them, because what a token is as text may
        # depend on its neighbours: the first of a text often loses its space.
        self._window: list[int] = []
        self._shown = 0
        added = tokenizer.get_added_tokens_decoder()
        self._unseen = {number for number, token in added.items() if token.special}
        self.finished = False

    def push(self, token: int) -> str:
        """What one more token adds to the text that was given so far."""
        if self.finished or token in self._stop_tokens:
            self.finished = True
            return ""
        name = self._tokenizer.id_to_token(token)
        if name is None or token in self._unseen:
            return ""
        self._window.append(token)
        # A token for one byte, such as <0xE4>, may still change with the bytes that follow.
        if _BYTE.fullmatch(name):
            return ""
        text = self._decoded()
        complete = text.removesuffix("\ufffd")
        piece = complete[self._shown :]
        if text == complete and len(self._window) > _WINDOW:
            kept = self._window[-_KEPT:]
            last = str(self._tokenizer.decode(kept))
            if last:
                self._window, complete = kept, last
        self._shown = len(complete)
        return piece

    def rest(self) -> str:
        """What was held back, when no more tokens come."""
        text = self._decoded()
        piece, self._shown = text[self._shown :], len(text)
        return piece

    def _decoded(self) -> str:
        return str(self._tokenizer.decode(self._window))

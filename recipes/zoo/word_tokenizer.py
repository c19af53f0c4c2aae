"""Tokenizers of the zoo's word-level vocabularies, as files that programs carry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

TOKENIZER_FILE = "tokenizer.json"


def word_tokenizer(words: Sequence[str]) -> bytes:
    """The tokenizer of words between spaces, in the format of the tokenizers library.

    Args:
        words: the word of each token, in the order of the tokens.
    """
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(words)},
            "unk_token": "[UNK]",
        },
    }
    return (json.dumps(tokenizer, indent=1) + "\n").encode()

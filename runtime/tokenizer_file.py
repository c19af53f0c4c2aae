"""Reads the tokenizer file of a bundle, which may come from anywhere."""

import json
from typing import Any

from optimize.runtime.errors import CorruptBundle, ResourceError, UnsafeBundle

MAX_TOKENIZER_BYTES = 64 * 2**20


def check_tokenizer_size(name: str, size: int) -> None:
    """Refuses a tokenizer file that is too large to be one.

    Raises:
        UnsafeBundle: says how large it is.
    """
    if size > MAX_TOKENIZER_BYTES:
        raise UnsafeBundle(f"{name}: found {size} bytes, expected at most {MAX_TOKENIZER_BYTES}")


def parse_tokenizer(name: str, content: bytes) -> Any:
    """A `tokenizers.Tokenizer` that neither cuts nor pads.

    Raises:
        CorruptBundle: the content is no tokenizer.
        ResourceError: the library is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ResourceError(
            "prompt: needs the library tokenizers, which is not installed; "
            "pip install 'optimize[text]'"
        ) from error
    _refuse_cut_characters(name, content)
    try:
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    # A panic of the library is no Exception.
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorruptBundle(
            f"{name}: found no tokenizer: {reason[:200]}; export it again"
        ) from error
    return tokenizer


def _refuse_cut_characters(name: str, content: bytes) -> None:
    """Refuses merges that lack the prefix they should have.

    The library (0.23.3) cuts as many bytes off them as the prefix has; where that is inside a
    character it aborts the process, which nobody can catch.
    """
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorruptBundle(
            f"{name}: found no tokenizer: {reason[:200]}; export it again"
        ) from error
    model = data.get("model") if isinstance(data, dict) else None
    prefix = model.get("continuing_subword_prefix") if isinstance(model, dict) else None
    merges = model.get("merges") if isinstance(model, dict) else None
    if not isinstance(prefix, str) or not prefix or not isinstance(merges, list):
        return
    for merge in merges:
        parts = merge.split(" ", 1) if isinstance(merge, str) else merge
        second = parts[1] if isinstance(parts, list) and len(parts) == 2 else None
        if not (isinstance(second, str) and second.startswith(prefix)):
            raise CorruptBundle(
                f"{name}: found no tokenizer: merge {str(merge)[:50]!r} is not of a part that "
                f"begins with {prefix[:50]!r}; export it again"
            )

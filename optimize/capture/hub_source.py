"""What a model on disk or on the Hugging Face hub may be called, and why it cannot be had."""

import os
import re
from pathlib import Path

from optimize.ir.errors import InputModelError
from optimize.runtime.errors import ResourceError


def folder_or_hub_id(source: str | os.PathLike[str], file: str, kind: str, noun: str) -> str:
    """The name that the libraries' `from_pretrained` takes.

    Args:
        source: a folder, `~` allowed, or owner/name.
        file: what every such folder has, such as "config.json".
        kind: of model, for messages, such as "a transformers model".
        noun: what its owner calls it, such as "model".
    Raises:
        InputModelError: neither a folder of the kind nor a hub id.
    """
    text, folder = os.fspath(source), Path(source).expanduser()
    save = f"save {{}} with {noun}.save_pretrained(folder)"
    if not folder.is_dir() and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text):
        raise InputModelError(
            f"model {text}: found no such folder, expected a folder with {file} or a hub id "
            f"(owner/name); {save.format(f'the {noun}')}"
        )
    if folder.is_dir() and not (folder / file).is_file():
        raise InputModelError(
            f"model {text}: found a folder without {file}, expected {kind}; {save.format('it')}"
        )
    return str(folder) if folder.is_dir() else text


def cannot_be_loaded(source: str | os.PathLike[str], error: Exception) -> ResourceError:
    """The error for a model that a library failed to load."""
    return ResourceError(
        f"model {os.fspath(source)}: cannot be loaded: {first_line(error)}; download it where "
        "there is a network and pass its folder"
    )


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Loads a transformers language model with its tokenizer and processor."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from optimize.ir.errors import InputModelError
from optimize.runtime.errors import ResourceError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


class LoadedLanguageModel(NamedTuple):
    """A model and what lies beside it; None for what does not."""

    model: Any
    tokenizer: Any | None = None
    processor: Any | None = None


def load_language_model(source: Any) -> LoadedLanguageModel:
    """Loads a model from a folder or the hub; a model that is loaded already stays as it is.

    Args:
        source: a module, a folder made by `save_pretrained`, a hub id (owner/name), or what this
            function returned.
    Raises:
        InputModelError: none of these.
        ResourceError: transformers is not installed, or the model cannot be had.
    """
    if isinstance(source, LoadedLanguageModel):
        return source
    if isinstance(source, nn.Module):
        return LoadedLanguageModel(source)
    if not isinstance(source, (str, os.PathLike)):
        raise InputModelError(
            f"model: found {type(source).__name__}, expected a transformers model, its folder, or "
            "a hub id (owner/name)"
        )
    text, folder = os.fspath(source), Path(source).expanduser()
    if not folder.is_dir() and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text):
        raise InputModelError(
            f"model {text}: found no such folder, expected a folder with config.json or a hub id "
            "(owner/name); save the model with model.save_pretrained(folder)"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputModelError(
            f"model {text}: found a folder without config.json, expected a transformers model; "
            "save it with model.save_pretrained(folder)"
        )
    name = str(folder) if folder.is_dir() else text
    try:
        return _load(name)
    except ImportError as error:
        raise ResourceError(
            f"model {text}: a library it needs is not installed ({_first_line(error)}); pip "
            "install 'optimize[compile,hf]'"
        ) from error
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"model {text}: cannot be loaded: {_first_line(error)}; download it where there is a "
            "network and pass its folder"
        ) from error


def _load(name: str) -> LoadedLanguageModel:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
    )

    config = AutoConfig.from_pretrained(name)
    if getattr(config, "is_encoder_decoder", False):
        raise InputModelError(
            f"model {name}: found {config.model_type} with an encoder and a decoder, expected a "
            "decoder alone; such a model cannot be captured"
        )
    sees = hasattr(config, "vision_config")
    kind: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model = kind.from_pretrained(name)
    has_tokenizer = _has(name, TOKENIZER_FILES)
    tokenizer = AutoTokenizer.from_pretrained(name) if has_tokenizer else None
    whole = sees and has_tokenizer and _has(name, PROCESSOR_FILES)
    return LoadedLanguageModel(
        model.eval(), tokenizer, AutoProcessor.from_pretrained(name) if whole else None
    )


def _has(name: str, files: tuple[str, ...]) -> bool:
    """Whether a folder or a hub model has one of some files."""
    from transformers.utils import cached_file

    return any(
        cached_file(name, file, _raise_exceptions_for_missing_entries=False) is not None
        for file in files
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]

"""Loads a transformers language model with its tokenizer and processor."""

import os
from typing import Any, NamedTuple

from torch import nn

from optimize.capture.hub_source import cannot_be_loaded, first_line, folder_or_hub_id
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
    name = folder_or_hub_id(source, "config.json", "a transformers model", "model")
    try:
        return _load(name)
    except ImportError as error:
        raise ResourceError(
            f"model {os.fspath(source)}: a library it needs is not installed "
            f"({first_line(error)}); pip install 'optimize[compile,hf]'"
        ) from error
    except (OSError, ValueError) as error:
        raise cannot_be_loaded(source, error) from error


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

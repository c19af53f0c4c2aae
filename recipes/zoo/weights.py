"""Loads the trained weights that come with the zoo's models."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import safetensors.torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def with_weights(model: Model, path: Path, sha256: str, training: str | None = None) -> Model:
    """The model with the weights of a file, in evaluation mode.

    Args:
        path: the safetensors file, named like the model.
        sha256: the digest it must have.
        training: the module that trains it, where it is not named after the file.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not the one that this code was released with.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.stem}: found no file {path}, expected the trained weights; restore it from "
            "version control or train it with "
            f"`python -m optimize.recipes.zoo.{training or 'train_' + path.stem}`."
        )
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise ValueError(
            f"{path.stem}: found weights with SHA-256 {digest}, expected {sha256}; restore "
            f"{path} from version control, or update WEIGHTS_SHA256 after training anew."
        )
    model.load_state_dict(safetensors.torch.load(content))
    return model.eval()

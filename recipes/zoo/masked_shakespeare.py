"""A masked-diffusion language model of Shakespeare's plays, over the tokens of zoo:shakespeare."""

from __future__ import annotations

from pathlib import Path

from optimize.recipes.zoo.masked_language_model import MaskedLanguageModel
from optimize.recipes.zoo.shakespeare_data import VOCABULARY
from optimize.recipes.zoo.weights import with_weights

WEIGHTS_PATH = Path(__file__).with_name("masked_shakespeare.safetensors")
WEIGHTS_SHA256 = ""
LENGTH = 256
"""Tokens of the texts that it was trained on."""


def new_masked_shakespeare() -> MaskedLanguageModel:
    """The model, untrained."""
    return MaskedLanguageModel(VOCABULARY, dim=128, block_count=6, head_count=4, hidden=352)


def load_masked_shakespeare(path: Path = WEIGHTS_PATH) -> MaskedLanguageModel:
    """Loads the trained model in evaluation mode, in single precision.

    Args:
        path: the weights that come with `optimize`, in half precision; their digest is checked.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not the one that this code was released with.
    """
    return with_weights(new_masked_shakespeare(), path, WEIGHTS_SHA256)

"""A masked-diffusion language model that adds numbers of ten digits."""

from __future__ import annotations

from pathlib import Path

from optimize.recipes.zoo.long_sums_data import VOCABULARY
from optimize.recipes.zoo.masked_language_model import MaskedLanguageModel
from optimize.recipes.zoo.weights import with_weights

WEIGHTS_PATH = Path(__file__).with_name("long_sums.safetensors")
WEIGHTS_SHA256 = ""


def new_long_sums() -> MaskedLanguageModel:
    """The model, untrained."""
    return MaskedLanguageModel(VOCABULARY, dim=96, block_count=4, head_count=4, hidden=256)


def load_long_sums(path: Path = WEIGHTS_PATH) -> MaskedLanguageModel:
    """Loads the trained model in evaluation mode, in single precision.

    Args:
        path: the weights that come with `optimize`, in half precision; their digest is checked.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not the one that this code was released with.
    """
    return with_weights(new_long_sums(), path, WEIGHTS_SHA256)

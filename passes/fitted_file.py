"""Reads the weights of what was fitted to a model: safetensors, whose metadata says what it is."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open


def read_fitted(
    path: Path, form: str, what: str, maker: str
) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and weights of a file.

    Args:
        path: the file.
        form: what its metadata calls its format.
        what: what is in it, for messages, such as "a Chimera draft".
        maker: the module under `optimize.recipes.fit` that makes such files.
    Raises:
        ValueError: there is no such file, it is damaged, or of another format.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: found no such file, expected the weights of {what}; "
            f"optimize.recipes.fit.{maker} makes them"
        ) from error
    except SafetensorError as error:
        raise ValueError(
            f"{path}: found no readable safetensors file ({error}), expected {what}"
        ) from error
    if metadata.get("format") != form:
        raise ValueError(
            f"{path}: found a file of format {metadata.get('format')!r}, expected {form!r}; "
            f"give one that optimize.recipes.fit.{maker} made"
        )
    return metadata, weights


def check_shapes(
    path: Path, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], whose: str
) -> None:
    """Refuses weights of other names or shapes.

    Raises:
        ValueError: names those that differ.
    """
    shapes, wanted = (
        {name: tuple(value.shape) for name, value in tensors.items()}
        for tensors in (found, expected)
    )
    if shapes != wanted:
        names = sorted({*shapes, *wanted})
        wrong = [name for name in names if shapes.get(name) != wanted.get(name)]
        raise ValueError(
            f"{path}: found weights that do not fit its {whose} ({', '.join(wrong)}); fit it again"
        )

"""Reads and writes the weights of a Chimera draft: safetensors of float16, with its target's mark.

The embedding table and the last matrix of the target are not in the file; it says which they were.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from optimize.passes.drafts.chimera import Chimera, ChimeraConfig, target_fingerprint

FORMAT = "chimera draft 1"


def save_chimera(chimera: Chimera, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes the draft's own weights, its configuration and the fingerprint of its target."""
    weights = {
        name: value.detach().to(dtype).contiguous() for name, value in chimera.state_dict().items()
    }
    metadata = {
        "format": FORMAT,
        "config": json.dumps(asdict(chimera.config), sort_keys=True),
        "target": target_fingerprint(chimera.embedding, chimera.lm_head),
    }
    save_file(weights, path, metadata)


def load_chimera(path: Path, embedding: torch.Tensor, lm_head: torch.Tensor) -> Chimera:
    """The draft in a file, in the dtype of `lm_head`, in evaluation mode.

    Args:
        path: as `save_chimera` wrote it.
        embedding: [V, H] the embedding table of the target it was fitted to.
        lm_head: [V, H] the last matrix of that target.
    Raises:
        ValueError: the file is no draft, is damaged, or belongs to another target.
    """
    metadata, weights = _read(path)
    try:
        config = ChimeraConfig(**json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: found no valid configuration of a Chimera draft ({error}); fit it again"
        ) from error
    chimera = Chimera(config, embedding, lm_head)
    found = target_fingerprint(embedding, lm_head)
    if found != metadata.get("target"):
        raise ValueError(
            f"{path}: found a draft of the target {str(metadata.get('target'))[:12]}, expected "
            f"{found[:12]} (SHA-256 over embedding table and last matrix); fit a draft to this "
            "target"
        )
    expected = {name: tuple(value.shape) for name, value in chimera.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    if shapes != expected:
        wrong = sorted(
            name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name)
        )
        raise ValueError(
            f"{path}: found weights that do not fit its configuration ({', '.join(wrong)}); "
            "fit the draft again"
        )
    chimera.load_state_dict({name: value.to(lm_head.dtype) for name, value in weights.items()})
    return chimera.eval()


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: found no such file, expected the weights of a Chimera draft; "
            "optimize.recipes.fit.chimera makes them"
        ) from error
    except SafetensorError as error:
        raise ValueError(
            f"{path}: found no readable safetensors file ({error}), expected a Chimera draft"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path}: found a file of format {metadata.get('format')!r}, expected {FORMAT!r}; "
            "give the file that save_chimera wrote"
        )
    return metadata, weights

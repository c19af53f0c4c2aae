"""Reads and writes the weights of a Chimera draft: safetensors of float16, with its target's mark.

The embedding table and the last matrix of the target are not in the file; it says which they were.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from optimize.passes.drafts.chimera import Chimera, ChimeraConfig, target_fingerprint
from optimize.passes.fitted_file import check_shapes, read_fitted

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
    metadata, weights = read_fitted(path, FORMAT, "a Chimera draft", "chimera")
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
    check_shapes(path, weights, chimera.state_dict(), "configuration")
    chimera.load_state_dict({name: value.to(lm_head.dtype) for name, value in weights.items()})
    return chimera.eval()

"""The trained head of a judge, and its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT = "judge head 1"


@dataclass(frozen=True)
class JudgeHead:
    """The judge of a target.

    Attributes:
        weight: [d] float32.
        bias: of the score.
        threshold: a token is accepted where its probability to be correct is at least this.
        fingerprint: of the target, see `optimize.passes.drafts.chimera.target_fingerprint`.
    """

    weight: torch.Tensor
    bias: float
    threshold: float
    fingerprint: str

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log odds [...] that tokens are correct, of the states [..., d] at their own positions."""
        return hidden @ self.weight.to(hidden.dtype) + self.bias


def save_judge(head: JudgeHead, path: Path) -> None:
    """Writes the head as safetensors."""
    weights = {
        "weight": head.weight.detach().float().contiguous(),
        "bias": torch.tensor(head.bias, dtype=torch.float64),
    }
    facts = {"threshold": head.threshold, "fingerprint": head.fingerprint}
    save_file(weights, path, {"format": FORMAT, "facts": json.dumps(facts)})


def load_judge(path: Path, fingerprint: str | None = None) -> JudgeHead:
    """Reads what `save_judge` wrote.

    Args:
        path: the file.
        fingerprint: of the target it is meant for; None takes any.
    Raises:
        ValueError: the file is no judge head, or that of another target.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(
                    f"{path}: found a file of format {metadata.get('format')!r}, expected "
                    f"{FORMAT!r}; give the file that save_judge wrote"
                )
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias").item()
    except (FileNotFoundError, SafetensorError) as error:
        raise ValueError(
            f"{path}: found no readable safetensors file ({error}), expected a judge head"
        ) from error
    facts = json.loads(metadata["facts"])
    if fingerprint is not None and facts["fingerprint"] != fingerprint:
        raise ValueError(
            f"{path}: found a judge of the target {facts['fingerprint'][:12]}, expected "
            f"{fingerprint[:12]}; a judge only fits the target whose states it was fitted to"
        )
    return JudgeHead(weight, bias, facts["threshold"], facts["fingerprint"])

"""Reads and writes the weights of an energy head: safetensors, with the mark of its denoiser."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from optimize.ir.program import Program
from optimize.passes.energies.energy_head import EnergyHead, denoiser_fingerprint
from optimize.passes.fitted_file import check_shapes, read_fitted

FORMAT = "energy head 1"


def save_energy_head(
    head: EnergyHead, program: Program, path: Path, dtype: torch.dtype = torch.float16
) -> None:
    """Writes the weights of a head and the fingerprint of its denoiser.

    Args:
        head: fitted to the denoiser of `program`.
        path: the file to write.
        dtype: of the weights in the file.
    """
    weights = {
        name: value.detach().to(dtype).contiguous() for name, value in head.tensors().items()
    }
    save_file(weights, path, {"format": FORMAT, "denoiser": denoiser_fingerprint(program)})


def load_energy_head(path: Path, program: Program) -> EnergyHead:
    """The head in a file, in evaluation mode; its trunk in the dtype of the denoiser.

    Args:
        path: as `save_energy_head` wrote it.
        program: of the denoiser that it was fitted to.
    Raises:
        ValueError: the file is no head, is damaged, or belongs to another denoiser; or the
            denoiser cannot have a head.
    """
    metadata, weights = read_fitted(path, FORMAT, "an energy head", "energy_head")
    head = EnergyHead(program)
    found = denoiser_fingerprint(program)
    if metadata.get("denoiser") != found:
        raise ValueError(
            f"{path}: found a head of the denoiser {str(metadata.get('denoiser'))[:12]}, expected "
            f"{found[:12]} (SHA-256 over its parameters); fit a head to this denoiser"
        )
    tensors = head.tensors()
    check_shapes(path, weights, tensors, "denoiser")
    with torch.no_grad():
        for name, value in weights.items():
            tensors[name].copy_(value)
    return head.eval().requires_grad_(False)

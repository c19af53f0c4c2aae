"""Reads and writes the weights of an energy head: safetensors, with the mark of its denoiser."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from optimize.ir.program import Program
from optimize.passes.energies.energy_head import EnergyHead, denoiser_fingerprint

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
    metadata, weights = _read(path)
    head = EnergyHead(program)
    found = denoiser_fingerprint(program)
    if metadata.get("denoiser") != found:
        raise ValueError(
            f"{path}: found a head of the denoiser {str(metadata.get('denoiser'))[:12]}, expected "
            f"{found[:12]} (SHA-256 over its parameters); fit a head to this denoiser"
        )
    tensors = head.tensors()
    expected = {name: tuple(value.shape) for name, value in tensors.items()}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    if shapes != expected:
        wrong = sorted(
            name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name)
        )
        raise ValueError(
            f"{path}: found weights that do not fit its denoiser ({', '.join(wrong)}); fit the "
            "head again"
        )
    with torch.no_grad():
        for name, value in weights.items():
            tensors[name].copy_(value)
    return head.eval().requires_grad_(False)


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: found no such file, expected the weights of an energy head; "
            "optimize.recipes.fit.energy_head makes them"
        ) from error
    except SafetensorError as error:
        raise ValueError(
            f"{path}: found no readable safetensors file ({error}), expected an energy head"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path}: found a file of format {metadata.get('format')!r}, expected {FORMAT!r}; "
            "give the file that save_energy_head wrote"
        )
    return metadata, weights

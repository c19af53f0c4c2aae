"""A small network that places the atoms of a crystal, trained as a periodic Bayesian flow.

Given the elements and the lattice it predicts fractional coordinates as angles. Ten calls make a
structure: `TorusFlowLoop` describes how.

Source: Wu et al. (2025), arXiv 2502.02016; Jiao et al. (2023), section 4.3, for the network.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from optimize.recipes.zoo.crystal_data import ELEMENTS
from optimize.recipes.zoo.weights import with_weights

FLOW_STEPS = 10
LARGEST_CONCENTRATION = 1000.0
SMALLEST_CONCENTRATION = 1e-7

LEAST_KNOWN = 0.01
"""Added to concentrations before they are inverted: below it nothing is known."""

WEIGHTS_PATH = Path(__file__).with_name("torus_crystals.safetensors")
WEIGHTS_SHA256 = "d753ecd7e1b571920b47a0d647ea27e4d0b21b53ff471e74e6ec16fb0e1ce8cb"
DIFFUSION_WEIGHTS_PATH = Path(__file__).with_name("torus_crystals_diffusion.safetensors")
DIFFUSION_WEIGHTS_SHA256 = "68572143ce7f812223b78e92de4eb9e6f851b87326d1efcfa550b920ae45075a"


def load_torus_crystals(path: Path = WEIGHTS_PATH) -> TorusCrystals:
    """Loads the trained Bayesian flow in evaluation mode.

    Args:
        path: the weights that come with `optimize`; their digest is checked.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not the one that this code was released with.
    """
    network = with_weights(CrystalNetwork(), path, WEIGHTS_SHA256)
    return TorusCrystals(network).eval()


def load_crystal_diffusion(path: Path = DIFFUSION_WEIGHTS_PATH) -> CrystalNetwork:
    """Loads the trained diffusion baseline; as `load_torus_crystals`."""
    return with_weights(CrystalNetwork(), path, DIFFUSION_WEIGHTS_SHA256, "train_torus_crystals")


class CrystalLayer(nn.Module):
    """Each atom hears from every atom of its cell: messages, their mean, a perceptron."""

    def __init__(self, width: int, edge_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_receiver = nn.Linear(width, width)
        self.to_sender = nn.Linear(width, width, bias=False)
        self.to_edge = nn.Linear(edge_width, width, bias=False)
        self.to_message = nn.Linear(width, width)
        self.linear_in = nn.Linear(2 * width, width)
        self.linear_out = nn.Linear(width, width)
        self.to_shift = nn.Linear(width, 3)
        nn.init.zeros_(self.to_shift.weight)
        nn.init.zeros_(self.to_shift.bias)

    def forward(
        self, atoms: torch.Tensor, edges: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Updates the atoms; also returns a displacement of each, [B, atoms, 3].

        Args:
            atoms: [B, atoms, width].
            edges: [B, atoms, atoms, edge_width], receiver before sender.
            weights: [B, 1, atoms, 1], 1 / number of atoms of the cell, 0 where there is no atom.
        """
        normal = self.norm(atoms)
        hidden = self.to_receiver(normal).unsqueeze(2) + self.to_sender(normal).unsqueeze(1)
        hidden = F.silu(hidden + self.to_edge(edges))
        message = (F.silu(self.to_message(hidden)) * weights).sum(2)
        hidden = F.silu(self.linear_in(torch.cat([normal, message], dim=-1)))
        updated = atoms + self.linear_out(hidden)
        return updated, self.to_shift(updated)


class CrystalNetwork(nn.Module):
    """A displacement for each atom, unchanged when all atoms are moved together.

    Each layer moves the atoms, and the next one sees the differences of the moved ones: sines and
    cosines of their harmonics, as expected under the belief.

    Args:
        width: of an atom's state.
        layer_count: message passing layers.
        harmonics: sines and cosines of 1 … this times each difference of angles.
    """

    def __init__(self, width: int = 96, layer_count: int = 5, harmonics: int = 8) -> None:
        super().__init__()
        self.type_embedding = nn.Embedding(ELEMENTS + 1, width)
        self.lattice_embedding = nn.Linear(6, width)
        self.noise_embedding = nn.Linear(3, width)
        self.step_embedding = nn.Linear(width, width)
        self.mix = nn.Linear(width, width)
        edge_width = 6 * harmonics
        self.layers = nn.ModuleList(CrystalLayer(width, edge_width) for _ in range(layer_count))
        # Root of the share of the belief's variance that is left at each layer.
        self.unknown = nn.Parameter(torch.ones(layer_count))
        self.frequencies: torch.Tensor
        self.harmonics: torch.Tensor
        exponent = torch.arange(width // 2, dtype=torch.float32) / (width // 2)
        self.register_buffer("frequencies", torch.exp(-math.log(10000.0) * exponent), False)
        self.register_buffer("harmonics", torch.arange(1, harmonics + 1).float(), False)

    def forward(
        self,
        angles: torch.Tensor,
        concentration: torch.Tensor,
        step_index: torch.Tensor,
        atom_types: torch.Tensor,
        lattice: torch.Tensor,
    ) -> torch.Tensor:
        """Predicts a displacement for each atom.

        Args:
            angles: [B, atoms, 3], radians, any period.
            concentration: [B, atoms, 3], >= 0, of the knowledge about each angle.
            step_index: [B], float32, in [1, 1000].
            atom_types: [B, atoms], int64, in [0, ELEMENTS]; 0 is no atom.
            lattice: [B, 6], as in `Crystals`.
        Returns:
            [B, atoms, 3], 0 where there is no atom.
        """
        present = (atom_types > 0).to(angles.dtype)
        weights = (present / present.sum(1, keepdim=True)).unsqueeze(1).unsqueeze(3)
        angle = step_index[:, None] * self.frequencies
        step = self.step_embedding(torch.cat([angle.cos(), angle.sin()], dim=-1))
        cell = step + self.lattice_embedding(lattice)
        atoms = self.type_embedding(atom_types) + self.noise_embedding(noise_level(concentration))
        atoms = atoms + self.mix(F.silu(atoms + cell.unsqueeze(1)))
        # Displacements are made in units of the belief's deviation.
        unit = torch.rsqrt(1 + concentration) * present.unsqueeze(2)
        shift = torch.zeros_like(angles)
        # The mean of exp(ikx) over a belief of variance v is smaller by exp(-k^2 v / 2): without
        # this the high harmonics of what is not known are noise to the network.
        variance = 1 / (concentration + LEAST_KNOWN)
        variance = (variance.unsqueeze(1) + variance.unsqueeze(2)).unsqueeze(4)
        exponent = variance * self.harmonics.square() / 2
        for layer, share in zip(self.layers, self.unknown, strict=True):
            moved = angles + shift
            difference = moved.unsqueeze(1) - moved.unsqueeze(2)
            waves = difference.unsqueeze(4) * self.harmonics
            known = torch.exp(-exponent * share.square())
            edges = torch.cat([waves.sin() * known, waves.cos() * known], dim=-1).flatten(3)
            atoms, step_shift = layer(atoms, edges, weights)
            shift = shift + step_shift * unit
        return shift


def noise_level(concentration: torch.Tensor) -> torch.Tensor:
    """log(concentration), mapped so that 1e-7 gives 0 and 1000 gives 1.

    The entropy of a belief is a function of this, and nearly linear in it where it matters.
    """
    low, high = math.log(SMALLEST_CONCENTRATION), math.log(LARGEST_CONCENTRATION)
    return ((concentration + SMALLEST_CONCENTRATION).log() - low) / (high - low)


class TorusCrystals(nn.Module):
    """Predicts the coordinates from a belief about them."""

    def __init__(self, network: CrystalNetwork | None = None) -> None:
        super().__init__()
        self.network = CrystalNetwork() if network is None else network

    def forward(
        self,
        mean: torch.Tensor,
        concentration: torch.Tensor,
        step_index: torch.Tensor,
        atom_types: torch.Tensor,
        lattice: torch.Tensor,
    ) -> torch.Tensor:
        """Predicts angles from a von Mises belief about each.

        Args:
            mean: [B, atoms, 3], radians, of the belief.
            concentration: [B, atoms, 3], >= 0, of the belief.
            step_index: [B], float32, in 1 … FLOW_STEPS.
            atom_types: [B, atoms], int64, in [0, ELEMENTS]; 0 is no atom.
            lattice: [B, 6], logarithms of the edges in angstrom, cosines of the angles.
        Returns:
            [B, atoms, 3], radians in [-pi, pi]: 2 pi times the fractional coordinates less pi.
        """
        angles = mean + self.network(mean, concentration, step_index, atom_types, lattice)
        wrapped: torch.Tensor = angles - 2 * math.pi * torch.round(angles / (2 * math.pi))
        return wrapped

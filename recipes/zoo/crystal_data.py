"""Toy crystals of known structure types, made by program and split by composition.

Twelve cations and eight anions have a radius and a polarity that no model sees. They decide the
lattice and, as `bias` = tanh of a difference, the free parameters of the sites. Each structure is
then distorted a little. Held out are all structures of some element combinations.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
import torch
from numpy.typing import NDArray

from optimize.recipes.zoo.crystal_prototypes import BINARY, TERNARY, Prototype

CATIONS, ANIONS = 12, 8
ELEMENTS = CATIONS + ANIONS
MAX_ATOMS = 8
HELD_OUT_PAIRS = 14
TERNARIES = 300
HELD_OUT_TERNARIES = 70
SEED = 0

DISTORTION = 0.005
"""Standard deviation of each fractional coordinate about its ideal place."""

STRAIN = 0.01
"""Standard deviation of the logarithm of the lattice's scale."""


@dataclass(frozen=True)
class Crystals:
    """Structures, padded to MAX_ATOMS atoms.

    Attributes:
        atom_types: [S, MAX_ATOMS], int64, in [1, ELEMENTS]; 0 where there is no atom.
        lattice: [S, 6], float32, logarithms of the edges in angstrom, cosines of the angles.
        coordinates: [S, MAX_ATOMS, 3], float32, fractional, in [0, 1); 0 where there is no atom.
        prototypes: [S], name of each structure's type.
    """

    atom_types: torch.Tensor
    lattice: torch.Tensor
    coordinates: torch.Tensor
    prototypes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prototypes)

    def rows(self, chosen: slice | NDArray[np.int64]) -> "Crystals":
        """Some of the structures, by slice or indices."""
        names = np.array(self.prototypes)[chosen]
        return Crystals(
            self.atom_types[chosen], self.lattice[chosen], self.coordinates[chosen], tuple(names)
        )

    def by_size(self, largest: int) -> Iterator[tuple[NDArray[np.int64], "Crystals"]]:
        """Parts of at most `largest` structures of like size, without needless padding.

        Yields:
            The part's indices and its structures, padded to its largest one only.
        """
        sizes = (self.atom_types > 0).sum(1).numpy()
        order = np.argsort(sizes, kind="stable")
        for first in range(0, len(order), largest):
            chosen = order[first : first + largest]
            part, width = self.rows(chosen), int(sizes[chosen].max())
            types, places = part.atom_types[:, :width], part.coordinates[:, :width]
            yield chosen, Crystals(types, part.lattice, places, part.prototypes)


@dataclass(frozen=True)
class CrystalData:
    """The train split, at ideal coordinates, and the held-out split, distorted once for all."""

    train: Crystals
    held_out: Crystals


@dataclass(frozen=True)
class Element:
    """Hidden properties: ionic radius in angstrom and polarity in [-1, 1]."""

    radius: float
    polarity: float


def elements(generator: np.random.Generator) -> list[Element]:
    """CATIONS cations, then ANIONS anions; numbers are evenly spread, in random order."""
    found = []
    for count, low, high in ((CATIONS, 0.6, 1.5), (ANIONS, 1.2, 2.2)):
        radius = generator.permutation(np.linspace(low, high, count))
        polarity = generator.permutation(np.linspace(-1, 1, count))
        found += [Element(float(r), float(p)) for r, p in zip(radius, polarity, strict=True)]
    return found


def load_crystals() -> CrystalData:
    """Makes all structures; the same each time."""
    generator = np.random.default_rng(SEED)
    table = elements(generator)
    anions = range(CATIONS, ELEMENTS)
    pairs = list(product(range(CATIONS), anions))
    rare = {pairs[i] for i in generator.permutation(len(pairs))[:HELD_OUT_PAIRS]}
    rows: tuple[list[_Row], list[_Row]] = ([], [])
    for name, prototype in BINARY.items():
        for pair in pairs:
            roles = dict(zip("AX", pair, strict=True))
            rows[pair in rare].append(_row(name, prototype, roles, table, generator))
    triples = [(a, b, x) for a, b in permutations(range(CATIONS), 2) for x in anions]
    chosen = generator.permutation(len(triples))[:TERNARIES]
    for name, prototype in TERNARY.items():
        for order, index in enumerate(chosen):
            roles = dict(zip("ABX", triples[index], strict=True))
            held_out = order < HELD_OUT_TERNARIES
            rows[held_out].append(_row(name, prototype, roles, table, generator))
    train, held_out_rows = (_stacked(part) for part in rows)
    return CrystalData(train, distorted(held_out_rows, generator))


def distorted(crystals: Crystals, generator: np.random.Generator) -> Crystals:
    """The structures with normal displacements of standard deviation DISTORTION."""
    noise = generator.normal(scale=DISTORTION, size=tuple(crystals.coordinates.shape))
    moved = torch.remainder(crystals.coordinates + torch.from_numpy(noise), 1.0).float()
    mask = (crystals.atom_types > 0)[..., None]
    # A tiny negative number is 1.0 after the remainder in float32.
    moved = torch.where(mask & (moved < 1.0), moved, 0.0)
    return Crystals(crystals.atom_types, crystals.lattice, moved, crystals.prototypes)


@dataclass(frozen=True)
class _Row:
    prototype: str
    atom_types: NDArray[np.int64]
    lattice: NDArray[np.float64]
    coordinates: NDArray[np.float64]


def _row(
    name: str,
    prototype: Prototype,
    roles: dict[str, int],
    table: list[Element],
    generator: np.random.Generator,
) -> _Row:
    radius = {role: table[index].radius for role, index in roles.items()}
    cation, anion = table[roles.get("B", roles["A"])], table[roles["X"]]
    outer = table[roles["A"]]
    bias = 1.5 * (cation.radius / anion.radius - 0.62) + cation.polarity * anion.polarity
    if "B" in roles:
        bias += outer.radius - 1.05
    cell = prototype(radius, float(np.tanh(bias)))
    edges = np.log(cell.lattice[:3]) + generator.normal(scale=STRAIN)
    lattice = np.concatenate([edges, np.cos(np.radians(cell.lattice[3:]))])
    types, places = [], []
    for role, sites in cell.sites.items():
        types += [roles[role] + 1] * len(sites)
        places += sites
    return _Row(name, np.array(types), lattice, np.mod(np.array(places), 1.0))


def _stacked(rows: list[_Row]) -> Crystals:
    types = np.zeros((len(rows), MAX_ATOMS), dtype=np.int64)
    coordinates = np.zeros((len(rows), MAX_ATOMS, 3), dtype=np.float32)
    for index, row in enumerate(rows):
        types[index, : len(row.atom_types)] = row.atom_types
        coordinates[index, : len(row.atom_types)] = row.coordinates
    return Crystals(
        atom_types=torch.from_numpy(types),
        lattice=torch.from_numpy(np.stack([row.lattice for row in rows]).astype(np.float32)),
        coordinates=torch.from_numpy(coordinates),
        prototypes=tuple(row.prototype for row in rows),
    )

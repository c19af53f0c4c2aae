"""Structure types of binary and ternary crystals, in fixed settings of 4 to 8 atoms a cell.

Each is a function of the radii of its elements and of one number that the elements decide, the
`bias`, which sets the free parameters of the sites: a hidden rule that a model has to find. Cells
and sites are those of the structures they are named after, free parameters vary more widely.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Sites = dict[str, list[tuple[float, float, float]]]
"""Role of an element in the formula, A, B or X, → fractional coordinates of its atoms."""

Radii = dict[str, float]
"""Role → ionic radius in angstrom."""


@dataclass(frozen=True)
class Cell:
    """A unit cell.

    Attributes:
        lattice: edge lengths a, b, c in angstrom and angles alpha, beta, gamma in degrees.
        sites: where the atoms are.
    """

    lattice: tuple[float, float, float, float, float, float]
    sites: Sites


Prototype = Callable[[Radii, float], Cell]

BODY_CENTRES = [(0.0, 0.0, 0.0), (0.5, 0.5, 0.5)]
FACE_CENTRES = [(0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0)]


def _box(a: float, b: float, c: float) -> tuple[float, float, float, float, float, float]:
    return (a, b, c, 90.0, 90.0, 90.0)


def _hexagonal(a: float, c: float) -> tuple[float, float, float, float, float, float]:
    return (a, a, c, 90.0, 90.0, 120.0)


def _shifted(
    sites: list[tuple[float, float, float]], x: float, y: float, z: float
) -> list[tuple[float, float, float]]:
    return [(a + x, b + y, c + z) for a, b, c in sites]


def caesium_chloride(radius: Radii, bias: float) -> Cell:
    """AX, two cubes stacked along c; X leaves the centre along c by `bias`."""
    a = 2 * (radius["A"] + radius["X"]) / math.sqrt(3)
    z = 0.25 + 0.03 * bias
    sites: Sites = {
        "A": [(0.0, 0.0, 0.0), (0.0, 0.0, 0.5)],
        "X": [(0.5, 0.5, z), (0.5, 0.5, z + 0.5)],
    }
    return Cell(_box(a, a, 2 * a * (1 + 0.03 * bias)), sites)


def rock_salt(radius: Radii, bias: float) -> Cell:
    """AX, cubic, no free parameter."""
    a = 2 * (radius["A"] + radius["X"])
    return Cell(_box(a, a, a), {"A": FACE_CENTRES, "X": _shifted(FACE_CENTRES, 0.5, 0.5, 0.5)})


def zinc_blende(radius: Radii, bias: float) -> Cell:
    """AX, cubic, no free parameter."""
    a = 4 * (radius["A"] + radius["X"]) / math.sqrt(3)
    return Cell(_box(a, a, a), {"A": FACE_CENTRES, "X": _shifted(FACE_CENTRES, 0.25, 0.25, 0.25)})


def fluorite(radius: Radii, bias: float) -> Cell:
    """AX2, cubic in its tetragonal cell of six atoms, no free parameter."""
    c = 4 * (radius["A"] + radius["X"]) / math.sqrt(3)
    a = c / math.sqrt(2)
    sites: Sites = {
        "A": BODY_CENTRES,
        "X": [(0.0, 0.5, 0.25), (0.5, 0.0, 0.75), (0.5, 0.0, 0.25), (0.0, 0.5, 0.75)],
    }
    return Cell(_box(a, a, c), sites)


def half_heusler(radius: Radii, bias: float) -> Cell:
    """ABX, cubic in its tetragonal cell of six atoms, no free parameter."""
    c = 2 * (radius["B"] + radius["X"])
    a = c / math.sqrt(2)
    sites: Sites = {
        "A": BODY_CENTRES,
        "B": [(0.0, 0.5, 0.25), (0.5, 0.0, 0.75)],
        "X": [(0.0, 0.0, 0.5), (0.5, 0.5, 0.0)],
    }
    return Cell(_box(a, a, c), sites)


def matlockite(radius: Radii, bias: float) -> Cell:
    """ABX, tetragonal layers, six atoms; `bias` moves A and B along c, opposite ways."""
    a = 1.72 * (radius["A"] + radius["X"])
    low, high = 0.2 + 0.04 * bias, 0.65 - 0.04 * bias
    sites: Sites = {
        "A": [(0.0, 0.5, low), (0.5, 0.0, -low)],
        "B": [(0.0, 0.5, high), (0.5, 0.0, -high)],
        "X": [(0.0, 0.0, 0.0), (0.5, 0.5, 0.0)],
    }
    return Cell(_box(a, a, a * 1.75), sites)


def polar_perovskite(radius: Radii, bias: float) -> Cell:
    """ABX3, tetragonal, five atoms; `bias` moves B and X along c against A."""
    a = 2 * (radius["B"] + radius["X"])
    shift = 0.05 * (1 + bias)
    sites: Sites = {
        "A": [(0.0, 0.0, 0.0)],
        "B": [(0.5, 0.5, 0.5 + shift)],
        "X": [
            (0.5, 0.5, -1.5 * shift),
            (0.5, 0.0, 0.5 - 1.5 * shift),
            (0.0, 0.5, 0.5 - 1.5 * shift),
        ],
    }
    return Cell(_box(a, a, a * (1.02 + 0.06 * (1 + bias))), sites)


def wurtzite(radius: Radii, bias: float) -> Cell:
    """AX, hexagonal; `bias` stretches the bond along c."""
    a = math.sqrt(8 / 3) * (radius["A"] + radius["X"])
    u = 0.375 + 0.05 * bias
    cations = [(1 / 3, 2 / 3, 0.0), (2 / 3, 1 / 3, 0.5)]
    cell = _hexagonal(a, a * (1.633 - 0.08 * bias))
    return Cell(cell, {"A": cations, "X": _shifted(cations, 0.0, 0.0, u)})


def nickel_arsenide(radius: Radii, bias: float) -> Cell:
    """AX, hexagonal, no free parameter."""
    a = math.sqrt(2) * (radius["A"] + radius["X"])
    sites: Sites = {
        "A": [(0.0, 0.0, 0.0), (0.0, 0.0, 0.5)],
        "X": [(1 / 3, 2 / 3, 0.25), (2 / 3, 1 / 3, 0.75)],
    }
    return Cell(_hexagonal(a, a * (1.42 + 0.05 * bias)), sites)


def litharge(radius: Radii, bias: float) -> Cell:
    """AX, tetragonal layers; `bias` moves A along c."""
    a = 1.72 * (radius["A"] + radius["X"])
    z = 0.24 + 0.05 * bias
    sites: Sites = {
        "A": [(0.0, 0.5, z), (0.5, 0.0, -z)],
        "X": [(0.0, 0.0, 0.0), (0.5, 0.5, 0.0)],
    }
    return Cell(_box(a, a, a * 1.26), sites)


def rutile(radius: Radii, bias: float) -> Cell:
    """AX2, tetragonal; `bias` moves X along the diagonal of the base."""
    a = 2.35 * (radius["A"] + radius["X"])
    u = 0.305 + 0.04 * bias
    sites: Sites = {
        "A": [(0.0, 0.0, 0.0), (0.5, 0.5, 0.5)],
        "X": [(u, u, 0.0), (-u, -u, 0.0), (0.5 + u, 0.5 - u, 0.5), (0.5 - u, 0.5 + u, 0.5)],
    }
    return Cell(_box(a, a, a * (0.64 + 0.05 * bias)), sites)


def cadmium_iodide(radius: Radii, bias: float) -> Cell:
    """AX2, hexagonal layers, two along c; `bias` is their thickness."""
    a = 1.42 * (radius["A"] + radius["X"])
    z = 0.125 + 0.03 * bias
    layer = [(1 / 3, 2 / 3, z), (2 / 3, 1 / 3, -z)]
    sites: Sites = {
        "A": [(0.0, 0.0, 0.0), (0.0, 0.0, 0.5)],
        "X": layer + _shifted(layer, 0.0, 0.0, 0.5),
    }
    return Cell(_hexagonal(a, 3.2 * a), sites)


def molybdenite(radius: Radii, bias: float) -> Cell:
    """AX2, hexagonal prismatic layers, two along c; `bias` is their thickness."""
    a = 1.32 * (radius["A"] + radius["X"])
    z = 0.621 + 0.03 * bias
    upper, lower = (1 / 3, 2 / 3), (2 / 3, 1 / 3)
    sites: Sites = {
        "A": [(*upper, 0.25), (*lower, 0.75)],
        "X": [(*upper, z), (*lower, -z), (*lower, z + 0.5), (*upper, 0.5 - z)],
    }
    return Cell(_hexagonal(a, 3.9 * a), sites)


BINARY: dict[str, Prototype] = {
    item.__name__: item
    for item in (
        caesium_chloride,
        rock_salt,
        zinc_blende,
        fluorite,
        wurtzite,
        nickel_arsenide,
        litharge,
        rutile,
        cadmium_iodide,
        molybdenite,
    )
}
"""Structure types of two elements."""

TERNARY: dict[str, Prototype] = {
    item.__name__: item for item in (half_heusler, matlockite, polar_perovskite)
}
"""Structure types of three elements."""


def cell_matrix(lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edge vectors as rows, [3, 3], in angstrom, of six lattice parameters as in `Cell`."""
    a, b, c = lattice[:3]
    alpha, beta, gamma = np.cos(np.radians(lattice[3:]))
    sine = math.sqrt(1 - gamma**2)
    x = (alpha - beta * gamma) / sine
    height = math.sqrt(1 - beta**2 - x**2)
    return np.array([[a, 0, 0], [b * gamma, b * sine, 0], [c * beta, c * x, c * height]])

"""Match rates of the Bayesian flow and of the diffusion baseline by network calls.

python -m optimize.recipes.zoo.evaluate_torus_crystals --sheet crystals.png
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from optimize.recipes.zoo.crystal_data import Crystals, load_crystals
from optimize.recipes.zoo.crystal_diffusion import LEVELS, sample_diffusion
from optimize.recipes.zoo.crystal_flow import sample_flow
from optimize.recipes.zoo.crystal_match import TOLERANCE, matches, wilson_interval
from optimize.recipes.zoo.crystal_prototypes import cell_matrix
from optimize.recipes.zoo.torus_crystals import (
    FLOW_STEPS,
    load_crystal_diffusion,
    load_torus_crystals,
)

BASELINES: dict[str, tuple[tuple[int, ...], dict[str, bool]]] = {
    "ancestral": ((10, 20, 50, 100, 200, 500, LEVELS), {}),
    "probability-flow": ((10, 20, 50, 100), {"stochastic": False}),
    "corrector": ((5, 10, 25, 50, LEVELS), {"corrector": True}),
}
"""Ways to sample the baseline → numbers of steps, options of `sample_diffusion`."""

SHOWN = 6
SEED = 1


def print_rate(name: str, calls: int, found: NDArray[np.bool_]) -> None:
    """One line: match rate in per cent with its 95 % interval."""
    low, high = wilson_interval(float(found.mean()), len(found))
    interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
    print(f"{name:34s} {calls:5d} calls  {100 * found.mean():5.1f} % {interval}", flush=True)


def print_flow_rates(crystals: Crystals) -> NDArray[np.float64]:
    """Prints the flow's match rate, in all and by structure type; returns its coordinates."""
    coordinates = sample_flow(load_torus_crystals(), crystals, np.random.default_rng(SEED))
    found = matches(crystals, coordinates)
    print_rate("Bayesian flow", FLOW_STEPS, found)
    names = np.array(crystals.prototypes)
    for name in dict.fromkeys(crystals.prototypes):
        chosen = found[names == name]
        print(f"    {name:30s} {chosen.sum():5d} of {len(chosen)}")
    return coordinates


def print_baseline_rates(crystals: Crystals, kind: str) -> None:
    """Prints the match rates of the diffusion baseline, sampled in one of the ways."""
    network = load_crystal_diffusion()
    steps, options = BASELINES[kind]
    for count in steps:
        drawn = sample_diffusion(network, crystals, np.random.default_rng(SEED), count, **options)
        calls = 2 * count if options.get("corrector") else count
        print_rate(f"diffusion, {kind}", calls, matches(crystals, drawn))


def save_sheet(crystals: Crystals, coordinates: NDArray[np.float64], path: Path) -> None:
    """Draws a structure of each of some types, the true one above the generated one."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(crystals.prototypes))[-SHOWN:]
    figure = pyplot.figure(figsize=(3 * len(names), 6), layout="constrained")
    for column, name in enumerate(names):
        row = crystals.prototypes.index(name)
        present = (crystals.atom_types[row] > 0).numpy()
        kinds = crystals.atom_types[row].numpy()[present]
        lattice = crystals.lattice[row].double().numpy()
        cell = cell_matrix(
            np.concatenate([np.exp(lattice[:3]), np.degrees(np.arccos(lattice[3:]))])
        )
        true = crystals.coordinates[row].double().numpy()[present]
        for line, places in enumerate((true, coordinates[row][present])):
            axes = figure.add_subplot(
                2, len(names), line * len(names) + column + 1, projection="3d"
            )
            # The origin is free: the first atom is drawn near the corner.
            points = np.mod(places - places[0] + 0.1, 1.0) @ cell
            axes.scatter(*points.T, c=kinds, cmap="tab20", vmin=0, vmax=20, s=120)
            for limit, length in zip("xyz", np.abs(cell).sum(axis=0), strict=True):
                axes.set(**{f"{limit}lim": (min(0.0, cell[:, "xyz".index(limit)].min()), length)})
            axes.set_title(f"{name}, {'true' if line == 0 else 'generated'}", fontsize=9)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Prints match rates; draws a sheet if asked."""
    parser = argparse.ArgumentParser(description="Match rates of the crystal models.")
    parser.add_argument(
        "--baselines", nargs="*", choices=tuple(BASELINES), default=tuple(BASELINES)
    )
    parser.add_argument("--sheet", type=Path, help="PNG file to draw some structures to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    crystals = load_crystals().held_out
    print(f"{len(crystals)} held-out structures, tolerance {TOLERANCE} of the cell, seed {SEED}")
    coordinates = print_flow_rates(crystals)
    for kind in arguments.baselines:
        print_baseline_rates(crystals, kind)
    if arguments.sheet:
        save_sheet(crystals, coordinates, arguments.sheet)


if __name__ == "__main__":
    main()

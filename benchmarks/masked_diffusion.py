"""The figures of masked-diffusion language models: samplers, early commits, energies.

    python benchmarks/masked_diffusion.py --out build/bench/masked_diffusion.json

Each part runs in a process of its own. `--part NAME` runs one of them and prints its figures.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from parts import Figures, run_parts

sys.path.insert(0, str(Path(__file__).resolve().parent))


def likelihood() -> Figures:
    """zoo:masked-shakespeare: the bound on held-out text against unigram frequencies."""
    import masked_diffusion_texts

    return masked_diffusion_texts.likelihood()


def samplers() -> Figures:
    """zoo:masked-shakespeare: first hitting and energies against time steps, quality and time."""
    import masked_diffusion_samplers

    return masked_diffusion_samplers.samplers()


def calls() -> Figures:
    """What a call costs, by its parts and by engine."""
    import masked_diffusion_samplers

    return masked_diffusion_samplers.calls()


def commits() -> Figures:
    """zoo:long-sums: calls and right answers with early commits and without."""
    import masked_diffusion_commits

    return masked_diffusion_commits.commits()


PARTS: dict[str, Callable[..., Figures]] = {
    part.__name__: part for part in (likelihood, samplers, calls, commits)
}


if __name__ == "__main__":
    run_parts(__doc__, "masked_diffusion", PARTS, ("torch", "onnxruntime", "numpy"))

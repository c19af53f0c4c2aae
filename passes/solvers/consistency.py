"""Whether a network predicts what its description says, found from its own outputs.

From pure noise the network gives a clean estimate m. Noised anew to a middle level,
x = alpha m + sigma z, it must find z again; and from m moved aside, m moved aside, so that
repeating itself will not do. Read as each prediction type in turn, its output does both for one.
"""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from optimize.ir.denoise import Prediction
from optimize.ir.noise_path import Array
from optimize.ir.program import Program, denoising_repeat
from optimize.ir.solver_step import estimate
from optimize.runtime.loop import Call

STEPS = 8
"""Of the run whose first and middle levels are looked at."""

FITS = 0.1
"""Share of z that a right reading may miss; trained networks miss a few hundredths."""

FOLLOWS = 0.5
"""Share of what tells m from m moved aside that a right reading may miss."""

CLEARLY = 0.25
"""Another reading is believed if it misses less than this share of what the given one misses."""


def better_reading(program: Program, request: Mapping[str, Any]) -> Prediction | None:
    """The prediction type that fits the network clearly better than the described one, if any.

    Args:
        program: captured, its solver not yet fused; its network is called up to nine times.
        request: a request for it.
    """
    description = program.description
    assert description is not None
    levels = description.levels(STEPS)
    middle = STEPS // 2
    rng = np.random.default_rng(0)
    run = program.prepared(request, 0)
    run.begin()
    start = run.read("latent")
    first = _output(program, run, start, levels.timestep[0])
    noise = rng.standard_normal(start.shape)
    misses: dict[Prediction, float] = {}

    def missed(reading: Prediction, clean: Array) -> tuple[float, float]:
        """What a reading misses of the noise and of the clean value at the middle level."""
        latent = levels.alpha[middle] * clean + levels.sigma[middle] * noise
        output = _output(program, run, latent, levels.timestep[middle])
        found = estimate(levels, middle, reading, latent, output)
        return float(np.mean((found.noise - noise) ** 2)), float(
            np.mean((found.clean - clean) ** 2)
        )

    for reading in get_args(Prediction):
        if reading == "epsilon" and levels.alpha[0] == 0:
            continue  # it says nothing of the clean value there
        clean = estimate(levels, 0, reading, start, first).clean
        # A wrong reading may be huge, which would hide what it misses.
        clean = clean / max(1.0, float(np.std(clean)))
        moved = np.roll(clean, clean.shape[-1] // 4, axis=-1)
        misses[reading], _ = missed(reading, clean)
        difference = float(np.mean((moved - clean) ** 2))
        follows = misses[reading] < 1.0 and missed(reading, moved)[1] < FOLLOWS * difference
        if not follows:
            misses[reading] = max(1.0, misses[reading])
    given = misses.get(description.prediction, np.inf)
    best = min(misses, key=lambda reading: misses[reading])
    return best if misses[best] < FITS and misses[best] < CLEARLY * given else None


def _output(program: Program, run: Any, latent: Array, timestep: float) -> Array:
    """What the network returns at a latent and a time."""
    call = denoising_repeat(program).bodies["step"][0]
    assert isinstance(call, Call)
    inputs = run.inputs(call, 0)
    dtype = str(program.tables["timestep"].dtype)
    inputs["latent"] = run.engine.upload(latent.astype(dtype), dtype)
    inputs["timestep"] = run.engine.upload(np.asarray(timestep, dtype=dtype), dtype)
    outputs = run.engine.run(call.graph, inputs, {"prediction": None})
    found: Array = run.engine.download(outputs["prediction"]).astype(np.float64)
    return found

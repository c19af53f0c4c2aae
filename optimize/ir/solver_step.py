"""A solver as data: one matrix per denoiser call.

    (latent', kept') = matrix (latent, prediction, kept, noise)

Every explicit solver that is linear in what the network returns has this form: multistep ones keep
earlier estimates, the stages of singlestep ones are calls of their own that keep the start of the
step, stochastic ones read fresh noise. Guidance, the conversion of the prediction and the update
are then one pass over memory (`optimize::solver_step`), whatever the solver.

The matrices are not derived by hand. A solver is written as its paper writes it, on vectors, and
`recorded` runs it once on unit vectors, in float64: the clean estimate and the noise it uses are
folded into the coefficients, where near pure noise their large terms cancel exactly instead of in
the latent's float32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from optimize.ir.denoise import DenoiseLoop, Prediction
from optimize.ir.errors import InputModelError
from optimize.ir.noise_path import Array, Levels

COEFFICIENTS = "coefficients"
CONVERSION = "conversion"


@dataclass(frozen=True)
class Threshold:
    """Dynamic thresholding of the clean estimate, for models of pixels in [-1, 1].

    Args:
        ratio: quantile of the absolute values of a sample, in (0, 1].
        largest: the bound is not raised above this, > 1.
    Source: Saharia et al. (2022), Imagen, section 2.3.
    """

    ratio: float = 0.995
    largest: float = float("inf")


@dataclass(frozen=True)
class SolverStep:
    """A solver on one list of noise levels.

    Attributes:
        name: as in recipes and reports.
        levels: of the calls, in order; stages may repeat a level.
        matrices: [calls, 1 + history, 2 + history (+ 1 with noise)] float64.
        noisy: whether the last column multiplies fresh standard normal numbers.
        threshold: applied to the clean estimate, which then takes the prediction's place.
        conversion: [calls, 1, 2] float64, with a threshold: the clean estimate from latent and
            prediction.
    """

    name: str
    levels: Levels
    matrices: Array
    noisy: bool = False
    threshold: Threshold | None = None
    conversion: Array | None = None

    @property
    def calls(self) -> int:
        return len(self.matrices)

    @property
    def history(self) -> int:
        """How many tensors are kept from call to call."""
        return int(self.matrices.shape[1]) - 1

    @property
    def pattern(self) -> str:
        """As in `optimize::solver_step`: which coefficients are 0 or 1 at every call."""
        return pattern_of(self.matrices)

    @property
    def tables(self) -> dict[str, Array]:
        """The loop tables of the solver: one row per call."""
        tables = {COEFFICIENTS: self.matrices}
        if self.conversion is not None:
            tables[CONVERSION] = self.conversion
        return tables

    def stored(self, tables: Mapping[str, NDArray[Any]]) -> "SolverStep":
        """The solver with the numbers of stored tables, which may have fewer digits."""
        conversion = tables.get(CONVERSION)
        return replace(
            self,
            matrices=np.asarray(tables[COEFFICIENTS], dtype=np.float64),
            conversion=None if conversion is None else np.asarray(conversion, dtype=np.float64),
        )


def pattern_of(matrices: Array) -> str:
    """One letter per coefficient: "0" or "1" where it is that at every call, else "x"."""

    def letter(numbers: Array) -> str:
        if not np.any(numbers):
            return "0"
        return "1" if np.all(numbers == 1.0) else "x"

    _, rows, columns = matrices.shape
    return ",".join(
        "".join(letter(matrices[:, row, column]) for column in range(columns))
        for row in range(rows)
    )


@dataclass(frozen=True)
class Estimate:
    """What a prediction says: the clean value and the noise, as vectors like the latent."""

    clean: Array
    noise: Array


def estimate(
    levels: Levels, call: int, prediction: Prediction, latent: Array, output: Array
) -> Estimate:
    """Reads a prediction at the noise level of a call.

    Raises:
        InputModelError: an epsilon model at pure noise, which says nothing of the clean value.
    Source: Lu et al. (2022), DPM-Solver++, section 2; Salimans and Ho (2022), section 2, for v.
    """
    alpha, sigma = levels.alpha[call], levels.sigma[call]
    if prediction == "flow":
        return Estimate(latent - sigma * output, latent + alpha * output)
    if prediction == "epsilon":
        if alpha == 0:
            raise InputModelError(
                "schedule: found pure noise (alpha = 0) for an epsilon model, expected "
                "some signal; use a schedule whose last beta leaves some, or a v model"
            )
        return Estimate((latent - sigma * output) / alpha, output)
    clean = output if prediction == "denoised" else alpha * latent - (sigma / levels.prior) * output
    return Estimate(clean, (latent - alpha * clean) / sigma)


class Advance(Protocol):
    """One call of a solver, written on vectors: (latent', kept') of what it is given."""

    def __call__(
        self, call: int, latent: Array, seen: Estimate, kept: list[Array], noise: Array
    ) -> tuple[Array, Sequence[Array]]: ...


def recorded(
    name: str,
    levels: Levels,
    prediction: Prediction,
    advance: Advance,
    history: int,
    *,
    noisy: bool = False,
    threshold: Threshold | None = None,
) -> SolverStep:
    """The matrices of a solver, by running it on unit vectors.

    Args:
        levels: of the calls.
        prediction: what the network returns.
        advance: the solver; linear in all it is given.
        history: how many vectors `advance` keeps; those it never uses are dropped.
        noisy: whether it uses noise.
        threshold: of the clean estimate.
    """
    width = 2 + history + noisy
    unit = np.eye(width)
    noise = unit[-1] if noisy else np.zeros(width)
    reads: Prediction = prediction if threshold is None else "denoised"
    matrices = np.zeros((levels.steps, 1 + history, width))
    conversion = np.zeros((levels.steps, 1, 2))
    for call in range(levels.steps):
        seen = estimate(levels, call, reads, unit[0], unit[1])
        kept = list(unit[2 : 2 + history])
        moved, keeps = advance(call, unit[0], seen, kept, noise)
        matrices[call] = np.stack([moved, *keeps])
        if threshold is not None:
            plain = estimate(levels, call, prediction, unit[0], unit[1])
            conversion[call, 0] = plain.clean[:2]
    if not np.all(np.isfinite(matrices)):
        raise InputModelError(
            f"{name}: found coefficients that are not finite, expected numbers; the noise levels "
            f"{levels.sigma} do not suit this solver"
        )
    return SolverStep(
        name,
        levels,
        pruned(matrices, history),
        noisy,
        threshold,
        None if threshold is None else conversion,
    )


def pruned(matrices: Array, history: int) -> Array:
    """The matrices without kept values that nothing else ever reads."""
    used = list(range(history))
    while True:
        read = [
            item
            for item in used
            if any(
                np.any(matrices[:, row, 2 + item])
                for row in (0, *(1 + other for other in used if other != item))
            )
        ]
        if read == used:
            break
        used = read
    dropped = [2 + item for item in range(history) if item not in used]
    rows = [0, *(1 + item for item in used)]
    kept: Array = np.delete(matrices[:, rows], dropped, axis=2)
    return kept


def walk(
    step: SolverStep,
    prediction: Callable[[Array, int], Array],
    latent: Array,
    noise: Sequence[Array] | None = None,
) -> list[Array]:
    """Runs a solver outside any graph, in float64; returns the latent after each call.

    Args:
        prediction: (latent, call) → what the network returns; not thresholded.
        noise: of each call, for a stochastic solver.
    """
    kept = [np.zeros_like(latent)] * step.history
    seen = []
    for call, matrix in enumerate(step.matrices):
        extra = [] if noise is None else [noise[call]]
        values = np.stack([latent, prediction(latent, call), *kept, *extra])
        latent, *kept = np.tensordot(matrix, values, axes=1)
        seen.append(latent)
    return seen


def first_order(name: str, levels: Levels, prediction: Prediction) -> SolverStep:
    """DDIM without noise: keep the noise found, replace the clean estimate.

    A last sigma of 0 gives the clean estimate, whatever the other numbers.
    Source: Song et al. (2021), Denoising Diffusion Implicit Models, equation 12 with sigma_t = 0.
    """
    alpha, sigma = levels.alpha, levels.sigma

    def advance(
        call: int, latent: Array, seen: Estimate, kept: list[Array], noise: Array
    ) -> tuple[Array, Sequence[Array]]:
        keep = sigma[call + 1] / sigma[call]
        return keep * latent + (alpha[call + 1] - keep * alpha[call]) * seen.clean, ()

    return recorded(name, levels, prediction, advance, 0)


def plain_step(levels: Levels, prediction: Prediction) -> SolverStep:
    """The solver of a captured program before any pass: Euler for flow models, else DDIM."""
    if prediction == "flow":
        steps = np.diff(levels.sigma)
        matrices = np.stack([np.ones_like(steps), steps], axis=1)[:, None]
        return SolverStep("euler", levels, matrices)
    return first_order("ddim", levels, prediction)


def history_slot(age: int) -> str:
    """The slot of what a solver keeps between calls; ages count from 1."""
    return f"kept_{age}"


class HasSolver(Protocol):
    """A schedule that brings its own solver."""

    def solver(self, steps: int) -> SolverStep | None:
        """The solver of a run of `steps` steps; None for the plain one."""
        ...


def captured_step(description: DenoiseLoop, steps: int | None = None) -> SolverStep:
    """The solver of a captured program: its schedule's own, else the plain one."""
    steps = description.steps if steps is None else steps
    if hasattr(description.schedule, "solver"):
        own = cast(HasSolver, description.schedule).solver(steps)
        if own is not None:
            return own
    return plain_step(description.levels(steps), description.prediction)


def constant_error(step: SolverStep, prediction: Prediction) -> float:
    """How far a solver strays when the network always finds the same clean value; largest call.

    Any linear solver must follow alpha * clean + sigma * noise exactly then. With fresh noise only
    the clean part is fixed.
    """
    levels = step.levels
    reads: Prediction = prediction if step.threshold is None else "denoised"
    worst = 0.0
    for clean, noise in ((1.0, 0.0),) if step.noisy else ((1.0, 0.0), (0.0, 1.0)):
        path = levels.alpha * clean + levels.sigma * noise
        output = {
            "flow": np.full_like(path, noise - clean),
            "epsilon": np.full_like(path, noise),
            "v": levels.alpha * noise * levels.prior - levels.sigma / levels.prior * clean,
            "denoised": np.full_like(path, clean),
        }[reads]
        silent = [np.zeros(())] * step.calls if step.noisy else None
        values = walk(step, lambda _, call, o=output: o[call], path[0], silent)  # type: ignore[misc]
        worst = max(worst, float(np.abs(np.stack(values) - path[1:]).max()))
    return worst

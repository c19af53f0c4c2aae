"""The update of a solver as graph nodes: a row of numbers per step and one expression.

Two expressions cover the explicit solvers. `EulerStep` moves along the flow; `DataStep` is the
general linear multistep update in the clean estimate ("data") form, and `LinearStep` any update
that is linear, such as a library's own:

    latent'  = a * latent + b * prediction + c1 * denoised[-1] + c2 * denoised[-2]
    denoised = d * latent + e * prediction                          (kept for the next steps)

The current clean estimate is folded into a and b: near pure noise d and e are large and of opposite
sign, and adding them up in float32 would lose digits.
The numbers are computed in float64 by `optimize.passes.solvers` and stored as the latent's dtype.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from optimize.ir.builder import Builder
from optimize.ir.denoise import DenoiseLoop, Levels, Prediction

aten = torch.ops.aten


@dataclass(frozen=True)
class EulerStep:
    """latent + row[0] * prediction.

    Attributes:
        name: as in recipes.
        table: [steps, width] float64, one row per step.
        history: how many earlier clean estimates a step reads.
    """

    name: str
    table: NDArray[np.float64]
    history: int = 0

    def build(
        self,
        builder: Builder,
        latent: fx.Node,
        prediction: fx.Node,
        row: fx.Node,
        history: Sequence[fx.Node],
    ) -> tuple[fx.Node, list[fx.Node]]:
        """Adds one step's nodes; returns the new latent and the new history, newest first."""
        step = builder.call(aten.select.int, row, 0, 0)
        change = builder.call(aten.mul.Tensor, prediction, step)
        return builder.call(aten.add.Tensor, latent, change), []


@dataclass(frozen=True)
class DataStep:
    """The linear multistep update; columns: a, b, c1 … c_history, and with a history d, e."""

    name: str
    table: NDArray[np.float64]
    history: int

    def build(
        self,
        builder: Builder,
        latent: fx.Node,
        prediction: fx.Node,
        row: fx.Node,
        history: Sequence[fx.Node],
    ) -> tuple[fx.Node, list[fx.Node]]:
        """Adds one step's nodes; returns the new latent and the new history, newest first."""

        def combined(tensors: Sequence[fx.Node], column: int) -> fx.Node:
            terms = []
            for offset, tensor in enumerate(tensors):
                number = builder.call(aten.select.int, row, 0, column + offset)
                terms.append(builder.call(aten.mul.Tensor, tensor, number))
            result = terms[0]
            for term in terms[1:]:
                result = builder.call(aten.add.Tensor, result, term)
            return result

        moved = combined([latent, prediction, *history], 0)
        if not self.history:
            return moved, []
        denoised = combined([latent, prediction], 2 + self.history)
        return moved, [denoised, *history][: self.history]


@dataclass(frozen=True)
class LinearStep:
    """Any step that is linear in the latent, the prediction and what earlier steps kept.

        (latent', kept') = matrix (latent, prediction, kept)

    Attributes:
        name: as in reports.
        matrices: [steps, 1 + history, 2 + history] float64.
        history: how many tensors are kept from step to step.
    """

    name: str
    matrices: NDArray[np.float64]
    history: int

    @property
    def table(self) -> NDArray[np.float64]:
        """[steps, width] float64, one row per step."""
        return self.matrices.reshape(len(self.matrices), -1)

    def build(
        self,
        builder: Builder,
        latent: fx.Node,
        prediction: fx.Node,
        row: fx.Node,
        history: Sequence[fx.Node],
    ) -> tuple[fx.Node, list[fx.Node]]:
        """Adds one step's nodes; returns the new latent and the new history."""
        inputs = [latent, prediction, *history]
        results = [self._row(builder, inputs, row, index) for index in range(1 + self.history)]
        return results[0], results[1:]

    def _row(
        self, builder: Builder, inputs: Sequence[fx.Node], row: fx.Node, index: int
    ) -> fx.Node:
        """One line of the matrix, without the products that are 0 at every step."""
        columns = self.matrices[:, index]
        terms = []
        for place, tensor in enumerate(inputs):
            if not np.any(columns[:, place]):
                continue
            if np.all(columns[:, place] == 1.0):
                terms.append(tensor)
                continue
            number = builder.call(aten.select.int, row, 0, index * len(inputs) + place)
            terms.append(builder.call(aten.mul.Tensor, tensor, number))
        result = terms[0]
        for term in terms[1:]:
            result = builder.call(aten.add.Tensor, result, term)
        return result


SolverStep = EulerStep | DataStep | LinearStep
"""A solver for one schedule: its table, and the nodes of one step."""


def data_step(
    name: str, levels: Levels, prediction: Prediction, rows: NDArray[np.float64]
) -> DataStep:
    """A multistep solver from its rows in the clean estimate.

    Args:
        rows: [steps, 2 + history]: (a, b0, b1 …) of latent' = a latent + b0 denoised + b1 …
    """
    convert = conversion(levels, prediction)
    history = rows.shape[1] - 2
    now = rows[:, 1:2] * convert + np.stack([rows[:, 0], np.zeros(len(rows))], axis=1)
    columns = [now, rows[:, 2:], convert] if history else [now]
    return DataStep(name, np.concatenate(columns, axis=1), history)


def conversion(levels: Levels, prediction: Prediction) -> NDArray[np.float64]:
    """[steps, 2] float64: denoised = column 0 * latent + column 1 * prediction.

    Source: Lu et al. (2022), DPM-Solver++, section 2; flow: sigma = t, alpha = 1 - t.
    """
    alpha, sigma = levels.alpha[:-1], levels.sigma[:-1]
    one, zero = np.ones_like(alpha), np.zeros_like(alpha)
    columns = {
        "flow": (one, -sigma),
        "epsilon": (
            1.0 / np.where(alpha > 0, alpha, 1.0),
            -sigma / np.where(alpha > 0, alpha, 1.0),
        ),
        "v": (alpha, -sigma),
        "denoised": (zero, one),
    }
    return np.stack(columns[prediction], axis=1)


def first_order(levels: Levels) -> NDArray[np.float64]:
    """[steps, 2] float64: latent' = column 0 * latent + column 1 * denoised (DDIM, eta 0).

    A last sigma of 0 gives the row (0, alpha), whatever the other numbers.
    Source: Song et al. (2021), equation 12.
    """
    alpha, sigma = levels.alpha, levels.sigma
    keep = sigma[1:] / sigma[:-1]
    return np.stack([keep, alpha[1:] - keep * alpha[:-1]], axis=1)


def plain_step(levels: Levels, prediction: Prediction) -> SolverStep:
    """The solver of a captured program before any pass: Euler for flow models, else DDIM."""
    if prediction == "flow":
        return EulerStep("euler", np.diff(levels.sigma)[:, None])
    return data_step("ddim", levels, prediction, first_order(levels))


def stored_step(step: SolverStep, table: NDArray[np.floating]) -> SolverStep:
    """The solver with the numbers of a stored table, which may have fewer digits."""
    numbers = np.asarray(table, dtype=np.float64)
    if isinstance(step, LinearStep):
        return replace(step, matrices=numbers.reshape(step.matrices.shape))
    return replace(step, table=numbers)


def history_slot(age: int) -> str:
    """The slot of what a multistep solver kept: the clean estimate of `age` steps ago."""
    return f"denoised_{age}"


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


def constant_error(levels: Levels, prediction: Prediction, step: SolverStep) -> float:
    """How far a table strays when the network always finds the same clean value; largest step.

    Any linear solver must follow alpha * clean + sigma * noise exactly then.
    """
    alpha, sigma = levels.alpha, levels.sigma
    worst = 0.0
    for clean, noise in ((1.0, 0.0), (0.0, 1.0)):
        path = alpha * clean + sigma * noise
        now = path[:-1]
        output = {
            "flow": np.full_like(now, noise - clean),
            "epsilon": np.full_like(now, noise),
            "v": alpha[:-1] * noise - sigma[:-1] * clean,
            "denoised": np.full_like(now, clean),
        }[prediction]
        if isinstance(step, EulerStep):
            moved = now + step.table[:, 0] * output
        elif isinstance(step, LinearStep):
            moved, state = np.empty_like(now), np.zeros(step.history)
            for index, matrix in enumerate(step.matrices):
                result = matrix @ np.concatenate([[now[index], output[index]], state])
                moved[index], state = result[0], result[1:]
        else:
            moved = step.table[:, 0] * now + step.table[:, 1] * output
            # What is kept of each step: the clean estimate, or for flow solvers the velocity.
            kept = step.table[:, -2] * now + step.table[:, -1] * output if step.history else now
            for age in range(1, step.history + 1):
                earlier = np.concatenate([np.zeros(age), kept[:-age]])[: len(now)]
                moved = moved + step.table[:, 1 + age] * earlier
        worst = max(worst, float(np.abs(moved - path[1:]).max()))
    return worst

"""The update of a solver as graph nodes: a row of numbers per step and one expression.

Two expressions cover the explicit solvers. `EulerStep` moves along the flow; `DataStep` is the
general linear multistep update in the clean estimate ("data") form:

    denoised = convert_latent * latent + convert_prediction * prediction
    latent'  = a * latent + b0 * denoised + b1 * denoised[-1] + b2 * denoised[-2]

The numbers are computed in float64 by `optimize.passes.solvers` and stored as the latent's dtype.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from optimize.ir.builder import Builder
from optimize.ir.denoise import Levels, Prediction

aten = torch.ops.aten


class SolverStep(Protocol):
    """A solver for one schedule: its table, and the nodes of one step.

    Attributes:
        name: as in recipes.
        table: [steps, width] float64, one row per step.
        history: how many earlier clean estimates a step reads.
    """

    @property
    def name(self) -> str: ...

    @property
    def table(self) -> NDArray[np.float64]: ...

    @property
    def history(self) -> int: ...

    def build(
        self,
        builder: Builder,
        latent: fx.Node,
        prediction: fx.Node,
        row: fx.Node,
        history: Sequence[fx.Node],
    ) -> tuple[fx.Node, list[fx.Node]]:
        """Adds one step's nodes; returns the new latent and the new history, newest first."""
        ...


@dataclass(frozen=True)
class EulerStep:
    """latent + row[0] * prediction."""

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
        step = builder.call(aten.select.int, row, 0, 0)
        change = builder.call(aten.mul.Tensor, prediction, step)
        return builder.call(aten.add.Tensor, latent, change), []


@dataclass(frozen=True)
class DataStep:
    """The linear multistep update; columns: convert_latent, convert_prediction, a, b0, b1 …"""

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
        def scaled(tensor: fx.Node, column: int) -> fx.Node:
            number = builder.call(aten.select.int, row, 0, column)
            return builder.call(aten.mul.Tensor, tensor, number)

        denoised = builder.call(aten.add.Tensor, scaled(latent, 0), scaled(prediction, 1))
        estimates = [denoised, *history][: self.history + 1]
        result = scaled(latent, 2)
        for column, estimate in enumerate(estimates, start=3):
            result = builder.call(aten.add.Tensor, result, scaled(estimate, column))
        return result, estimates[: self.history]


def conversion(levels: Levels, prediction: Prediction) -> NDArray[np.float64]:
    """[steps, 2] float64: denoised = column 0 * latent + column 1 * prediction.

    Source: Lu et al. (2022), DPM-Solver++, section 2; flow: sigma = t, alpha = 1 - t.
    """
    alpha, sigma = levels.alpha[:-1], levels.sigma[:-1]
    one, zero = np.ones_like(alpha), np.zeros_like(alpha)
    columns = {
        "flow": (one, -sigma),
        "epsilon": (1.0 / np.where(alpha > 0, alpha, 1.0), -sigma / np.where(alpha > 0, alpha, 1.0)),
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
    table = np.concatenate([conversion(levels, prediction), first_order(levels)], axis=1)
    return DataStep("ddim", table, history=0)

"""What a recipe makes of a program: the seconds that the cost model predicts, and the quality."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optimize.ir.errors import RecipeError
from optimize.ir.program import Program
from optimize.measure.machines import Machine
from optimize.passes.calibration import Request
from optimize.passes.pipeline import (
    Results,
    results_error,
    results_match,
    results_psnr,
    run_passes,
)
from optimize.recipes.recipe import Recipe
from optimize.recipes.tuning.prediction import predicted

Quality = dict[str, float | None]


@dataclass(frozen=True)
class Runs:
    """What a program returned for each request, and the steps that the longest took."""

    results: Results
    steps: int


class Judge:
    """Holds recipes against the unoptimised program, which it runs once.

    Args:
        program: captured, without any pass.
        calibration: the requests on which results are compared.
        machine: what seconds are predicted for.
    """

    def __init__(self, program: Program, calibration: Sequence[Request], machine: Machine) -> None:
        self.program = program
        self.machine = machine
        self.calibration = calibration
        self.reference = self.run(program)
        self.seconds = self.predicted_after(program, self.reference)

    def check(self, metrics: Iterable[str]) -> None:
        """Refuses a metric that the results do not have.

        Raises:
            RecipeError: says which they have.
        """
        has = [name for name, value in self.quality(self.reference).items() if value is not None]
        for name in metrics:
            if name not in has:
                raise RecipeError(
                    f"budget {name}: the results have no such metric, expected {' or '.join(has)}"
                )

    def rewritten(self, recipe: Recipe) -> Program:
        """The program after the passes of a recipe, nothing verified.

        Raises:
            OptimizeError: a pass declines or fails.
        """
        return run_passes(self.program, recipe.passes, verify=False, calibration=self.calibration)

    def run(self, program: Program) -> Runs:
        """Runs all requests in PyTorch."""
        steps = 0

        def count(done: int, total: int) -> None:
            nonlocal steps
            steps = max(steps, done)

        results = [
            {name: tensor.numpy() for name, tensor in program(**request, progress=count).items()}
            for request in self.calibration
        ]
        return Runs(results, steps)

    def predicted(self, program: Program) -> float | None:
        """Seconds of one request; None where only a run shows how many steps there are."""
        return predicted(program, self.machine)

    def predicted_after(self, program: Program, runs: Runs) -> float:
        """Seconds of one request with as many steps as its runs took."""
        seconds = predicted(program, self.machine, runs.steps)
        assert seconds is not None
        return seconds

    def quality(self, runs: Runs) -> Quality:
        """Metric of a budget → value, against the unoptimised program.

        Raises:
            QualityError: results that cannot be compared.
            NumericsError: results of another shape.
        """
        ours, theirs = runs.results, self.reference.results
        return {
            "relative_error": results_error(ours, theirs),
            "psnr": results_psnr(ours, theirs) if _has_floats(theirs) else None,
            "token_match": results_match(ours, theirs),
        }

    def best_quality(self, metric: str) -> float:
        """What results that equal the reference are worth, more being better."""
        return {"psnr": math.inf, "relative_error": 0.0, "token_match": 1.0}[metric]


def _has_floats(results: Results) -> bool:
    return any(array.dtype.kind == "f" for array in results[0].values())

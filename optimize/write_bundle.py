"""Program → bundle, with its report and recipe inside and every target in its precision.

    program.export("bundle", target=("onnx", "aoti"), precision={"aoti": "bfloat16"})

A precision is a rewrite like any other: the result in it is compared with the program's own on the
calibration requests of the recipe, and held against a budget, before anything is written.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from optimize.export.bundle import export_bundle
from optimize.export.engines import EngineRequest, precision_of
from optimize.export.publish import absolute, check_target
from optimize.export.static_sizes import with_static_sizes
from optimize.ir.errors import RecipeError
from optimize.ir.exporting import LoopForm, Precision, precisions_of
from optimize.ir.program import Program, as_arrays
from optimize.ir.record import Record
from optimize.ir.report import Report
from optimize.measure.receipt import EXAMPLE_FILE, dump_example, measure_speed
from optimize.passes.calibration import Request, requests
from optimize.passes.lower_precision import LowerPrecision
from optimize.passes.pipeline import results_error, results_match, results_psnr, run_passes
from optimize.recipes.budget import check_budget
from optimize.recipes.recipe import Budget, Recipe
from optimize.report.html import render_html
from optimize.report.json_file import render_json
from optimize.runtime.session import Session

DEFAULT_BUDGET = Budget(relative_error=0.1)
"""What a precision may change where the recipe says nothing: 20 dB, or one token in ten."""


def write_bundle(
    program: Program,
    path: str | os.PathLike[str],
    *,
    targets: Sequence[str] = ("onnx",),
    precision: Precision | Mapping[str, Precision] | None = None,
    loop: LoopForm = "step",
    unroll: int | None = None,
    overwrite: bool = False,
    recipe: Mapping[str, Any] | None = None,
    report: Report | None = None,
    page: str | None = None,
    capabilities: Sequence[str] | None = None,
    sizes: Mapping[str, tuple[int, int, int]] | None = None,
    static: Mapping[str, int] | None = None,
    example: bool = False,
) -> Path:
    """Writes a bundle; see `Program.export`.

    Args:
        page: the HTML report; drawn from `report` when not given.
    """
    check_target(absolute(path), overwrite)
    wanted = precisions_of(precision, targets)
    given = None if recipe is None else Recipe.load(recipe)
    program = with_static_sizes(program, static or {})
    variants = _Variants(program, given)
    base = variants.of(wanted.get("onnx"))
    engines = [
        EngineRequest(target, variants.of(wanted.get(target)).program, capabilities, sizes or {})  # type: ignore[arg-type]
        for target in targets
        if target != "onnx"
    ]
    report = program.report if report is None else report

    def texts(
        facts: Mapping[str, Mapping[str, Any]], open_session: Callable[[], Session]
    ) -> dict[str, bytes]:
        """The files that say what was done, once everything is built."""
        told = {
            target: {**variants.of(wanted.get(target)).facts, **facts[target]} for target in facts
        }
        full = replace(report, targets=told)
        files = {}
        if example:
            files[EXAMPLE_FILE], receipt = variants.example(open_session)
            full = replace(full, receipt=receipt)
        files |= {
            "report.json": render_json(full).encode(),
            "report.html": (render_html(full) if page is None else page).encode(),
        }
        if given is not None:
            files["recipe.yaml"] = given.to_yaml().encode()
            files["recipe.lock.yaml"] = given.locked(program.history).to_yaml().encode()
        return files

    return export_bundle(
        base.program,
        path,
        loop=loop,
        unroll=unroll,
        overwrite=overwrite,
        report_files=texts,
        recipe=None if recipe is None else json.loads(json.dumps(recipe)),
        engines=engines,
        int8=wanted.get("onnx") == "int8",
    )


@dataclass(frozen=True)
class _Variant:
    """A program in some precision, and what that changed."""

    program: Program
    facts: Mapping[str, Any]


class _Variants:
    """The program in the precisions that are asked for, each made and checked once."""

    def __init__(self, program: Program, recipe: Recipe | None) -> None:
        self._program = program
        self._recipe = recipe
        self._made: dict[str | None, _Variant] = {
            None: _Variant(program, {"precision": precision_of(program)})
        }

    def of(self, precision: str | None) -> _Variant:
        """The program in a precision.

        Raises:
            QualityError: the result changes by more than the budget.
        """
        if precision is None or precision == precision_of(self._program):
            return self._made[None]
        if precision not in self._made:
            self._made[precision] = self._int8() if precision == "int8" else self._half(precision)
        return self._made[precision]

    def _requests(self) -> list[Request]:
        return requests(self._program, None if self._recipe is None else self._recipe.calibration)

    def example(self, open_session: Callable[[], Session]) -> tuple[bytes, Mapping[str, Any]]:
        """The file of a request with its results, and how fast and near the ONNX graphs are."""
        asked = as_arrays(self._requests()[0])
        expected = _numbers(self._program(**asked))
        with open_session() as session:
            found = _numbers(session(**asked))
            speed = measure_speed(lambda: session(**asked))
        receipt = {**asdict(speed), "relative_error": results_error([found], [expected])}
        return dump_example(asked, expected), receipt

    def _half(self, precision: Any) -> _Variant:
        low = LowerPrecision(precision)
        if (reason := low.declines(self._program)) is not None:
            raise RecipeError(f"precision {precision}: {reason}; leave it out")
        made = run_passes(self._program, [low], calibration=self._requests())
        record = made.history[-1]
        self._check(precision, made.history[-1:])
        facts = {"precision": precision, "relative_error": record.error}
        return _Variant(made, facts | {"psnr": record.details.get("psnr")})

    def _int8(self) -> _Variant:
        """Measured in ONNX Runtime, which quantises; a PyTorch program has no such thing."""
        from optimize.runtime.session import load

        asked = [as_arrays(request) for request in self._requests()]
        with tempfile.TemporaryDirectory() as folder:
            path = export_bundle(self._program, Path(folder) / "int8", int8=True)
            with load(path) as session:
                found = [_numbers(session(**request)) for request in asked]
        expected = [_numbers(self._program(**request)) for request in asked]
        error = results_error(found, expected)
        details: dict[str, Any] = {"psnr": results_psnr(found, expected)}
        match = results_match(found, expected)
        if match is not None:
            details["token_match"] = match
        self._check("int8", (Record("int8", error=error, details=details),))
        facts = {"precision": "int8", "relative_error": error, "psnr": details["psnr"]}
        return _Variant(self._program, facts)

    def _check(self, precision: str, history: Sequence[Any]) -> None:
        budget = DEFAULT_BUDGET if self._recipe is None else self._recipe.budget
        if budget.empty:
            budget = DEFAULT_BUDGET
        check_budget(f"precision {precision}", budget, history)


def _numbers(results: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in as_arrays(results).items() if hasattr(item, "dtype")}

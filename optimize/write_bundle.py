"""Program → bundle, with its report and recipe inside and every target in its precision.

    program.export("bundle", target=("onnx", "aoti"), precision={"aoti": "bfloat16"})

A precision is a rewrite like any other: the result in it is compared with the program's own on the
calibration requests of the recipe, and held against a budget, before anything is written.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from optimize.export.bundle import VERSION, Written, export_bundle
from optimize.export.engines import EngineRequest, precision_of
from optimize.export.publish import absolute, check_target
from optimize.export.static_sizes import with_static_sizes
from optimize.ir.errors import RecipeError
from optimize.ir.exporting import LoopForm, Precision, precisions_of
from optimize.ir.program import Program, as_arrays
from optimize.ir.record import Record
from optimize.ir.report import Report
from optimize.measure.kernel_facts import kernel_facts
from optimize.measure.receipt import (
    EXAMPLE_FILE,
    dump_example,
    measure_speed,
    measure_speedup,
    versions,
)
from optimize.measure.result_quality import result_quality
from optimize.measure.roofline import predictions
from optimize.passes.calibration import Request, requests
from optimize.passes.lower_precision import LowerPrecision
from optimize.passes.pipeline import results_error, results_match, results_psnr, run_passes
from optimize.recipes.budget import check_budget
from optimize.recipes.lock import Lock
from optimize.recipes.recipe import Budget, Recipe
from optimize.report.html import render_html
from optimize.report.json_file import render_json
from optimize.runtime.manifest import TABLES_FILE, WEIGHTS_FILE
from optimize.runtime.session import Session, load

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
    baseline: Program | None = None,
) -> Path:
    """Writes a bundle; see `Program.export`.

    Args:
        page: the HTML report; drawn from `report` when not given.
    """
    check_target(absolute(path), overwrite)
    wanted = precisions_of(precision, targets)
    given = None if recipe is None else Recipe.load(recipe)
    # Static sizes are part of the bundle, not of the program that was captured.
    program = replace(program, source=program.source_digest)
    program = with_static_sizes(program, static or {})
    variants = _Variants(program, given)
    base = variants.of(wanted.get("onnx"))
    engines = [
        EngineRequest(target, variants.of(wanted.get(target)).program, capabilities, sizes or {})  # type: ignore[arg-type]
        for target in targets
        if target != "onnx"
    ]
    report = program.report if report is None else report

    def texts(written: Written) -> dict[str, bytes]:
        """The files that say what was done, once everything is built."""
        told = {
            target: {**variants.of(wanted.get(target)).facts, **facts}
            for target, facts in written.targets.items()
        }
        full = replace(
            report,
            targets=told,
            costs=written.costs,
            predicted=predictions(base.program),
            source=asdict(program.source_digest),
            budget={} if given is None else given.budget.limits(),
        )
        files = {}
        if example:
            files[EXAMPLE_FILE], receipt = variants.example(written, baseline)
            kernels, notes = kernel_facts(base.program)
            full = replace(full, receipt=receipt, kernels=kernels, notes=(*full.notes, *notes))
        files |= {
            "report.json": render_json(full).encode(),
            "report.html": (render_html(full) if page is None else page).encode(),
        }
        if given is not None:
            lock = _lock(program, full.receipt)
            files["recipe.yaml"] = given.to_yaml().encode()
            files["recipe.lock.yaml"] = given.locked(program.history, lock).to_yaml().encode()
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

    def example(
        self, written: Written, baseline: Program | None
    ) -> tuple[bytes, Mapping[str, Any]]:
        """The file of a request with its results, and the receipt of the ONNX graphs."""
        asked = [as_arrays(request) for request in self._requests()]
        first = asked[0]
        expected = _numbers(self._program(**first))
        with written.open_session() as session:
            found = [_numbers(session(**request)) for request in asked]
            speed = measure_speed(lambda: session(**first))
            receipt = {
                **asdict(speed),
                "relative_error": results_error(found[:1], [expected]),
                **self._quality(asked, found, baseline),
                **_bound_to(self._program, written),
            }
            if baseline is not None:
                receipt["speedup"] = _speedup(session, baseline, first, written)
        return dump_example(first, expected), receipt

    def _quality(
        self,
        asked: Sequence[Mapping[str, Any]],
        found: Sequence[Mapping[str, Any]],
        baseline: Program | None,
    ) -> dict[str, Any]:
        """How near the ONNX graphs are to the program before any pass."""
        applied = any(record.declined is None for record in self._program.history)
        reference = self._program if baseline is None and not applied else baseline
        if reference is None:
            values = self._program.report.quality_of_result
            return {
                "quality": {name: {"value": it, "interval": None} for name, it in values.items()},
                "quality_note": "no interval: the program before the passes was not at hand; "
                "export with `baseline`",
            }
        expected = [_numbers(reference(**_fields(reference, request))) for request in asked]
        quality, note = result_quality(found, expected)
        return {"quality": quality} | ({} if note is None else {"quality_note": note})

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


def _fields(program: Program, request: Mapping[str, Any]) -> dict[str, Any]:
    """Those fields of a request that a program takes; passes may have added some."""
    known = {item.name for item in program.signature.inputs} | {"seed"}
    return {name: value for name, value in request.items() if name in known}


def _speedup(
    session: Session, baseline: Program, request: Mapping[str, Any], written: Written
) -> dict[str, Any]:
    """Against the program before the passes, both on ONNX Runtime."""
    fields = _fields(baseline, request)
    with (
        tempfile.TemporaryDirectory() as folder,
        load(export_bundle(baseline, Path(folder) / "baseline")) as other,
    ):
        theirs = other.manifest.files
        names = (*written.graphs.values(), WEIGHTS_FILE, TABLES_FILE)
        if all(theirs.get(name) == written.files[name] for name in names):
            note = "not measured: these are the graphs and weights of the captured program"
            return {"value": 1.0, "interval": None, "note": note}
        return measure_speedup(lambda: session(**request), lambda: other(**fields))


def _versions() -> dict[str, str]:
    return {"optimize": VERSION, **versions()}


def _bound_to(program: Program, written: Written) -> dict[str, Any]:
    """What the figures of a receipt are figures of."""
    return {
        "source": asdict(program.source_digest),
        "graphs": {role: written.files[path].sha256 for role, path in written.graphs.items()},
        "weights": written.files[WEIGHTS_FILE].sha256,
        "tables": written.files[TABLES_FILE].sha256,
        "passes": [
            {"name": record.name, "options": record.options}
            for record in program.history
            if record.declined is None
        ],
        "versions": _versions(),
    }


def _lock(program: Program, receipt: Mapping[str, Any]) -> Lock:
    source = program.source_digest
    return Lock(
        graphs=source.graphs,
        weights=source.weights,
        versions=_versions(),
        machine=receipt.get("machine"),
        ratio=receipt.get("ratio"),
        speedup=receipt.get("speedup"),
        quality=receipt.get("quality", {}),
    )

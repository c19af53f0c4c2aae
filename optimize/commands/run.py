"""`optimize run`: a model becomes a bundle by a recipe."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from optimize.commands.console import Json, console, print_json
from optimize.commands.models import HELP, load_model
from optimize.commands.progress import StageBar
from optimize.commands.targets import check_out, session_measure
from optimize.ir.errors import RecipeError
from optimize.ir.exporting import LoopForm, check_form, check_target_names, precisions_of

Model = Annotated[str, typer.Argument(metavar="MODEL", help=HELP, show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")]
Form = Annotated[
    LoopForm,
    typer.Option("--loop", help="Engine calls: one per step, one per --unroll steps, or one."),
]
Unroll = Annotated[
    int | None, typer.Option("--unroll", help="Steps per call of an unrolled loop; all by default.")
]
Targets = Annotated[
    list[str] | None,
    typer.Option("--target", help="onnx, aoti, tensorrt-rtx; repeat it for several in one bundle."),
]
Precisions = Annotated[
    list[str] | None,
    typer.Option(
        "--precision", help="float32, float16, bfloat16 or int8, or TARGET=PRECISION; repeatable."
    ),
]
Static = Annotated[
    list[str] | None,
    typer.Option("--static", help="NAME=SIZE: the one size the bundle is for; repeatable."),
]
Capabilities = Annotated[
    list[str] | None,
    typer.Option("--capability", help="GPUs TensorRT-RTX builds for, such as SM89; repeatable."),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the bundle to write.")]


def run(
    model: Model,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Name of a recipe, or path of a YAML file.")
    ] = "balanced",
    out: Out = None,
    overwrite: Overwrite = False,
    loop: Form = "step",
    unroll: Unroll = None,
    target: Targets = None,
    precision: Precisions = None,
    static: Static = None,
    capability: Capabilities = None,
    verify: Annotated[
        bool, typer.Option(help="Compare with the model as it was, and check the budget.")
    ] = True,
    measure: Annotated[
        bool, typer.Option(help="Time each pass on the target; drop optional ones that do not pay.")
    ] = True,
    timeout_s: Annotated[
        float,
        typer.Option(min=1.0, help="Longest wait for another process of a parallel recipe."),
    ] = 120.0,
    diff: Annotated[bool, typer.Option("--diff", help="Print what the passes changed.")] = False,
    as_json: Json = False,
) -> None:
    """Optimise a model by a recipe; with --out, write the bundle."""
    from optimize.recipes.recipe import Recipe

    checked = Recipe.load(recipe)
    check_form(loop, unroll)
    options = export_options(target, precision, static, capability, checked.target)
    processes = checked.parallel.sequence
    if out is not None:
        check_exportable(processes)
        check_out(out, overwrite, model)
    loaded = load_model(model)
    from optimize.ir.process_group import process_group

    with process_group(processes, timeout_s) as rank, StageBar(quiet=as_json or rank > 0) as bar:
        bar.wait("capture")
        from optimize.api import apply_recipe
        from optimize.capture.capture_model import capture_model
        from optimize.ir.printing import program_diff
        from optimize.passes.calibration import requests

        before = capture_model(loaded.model, loaded.example_inputs, loop=loaded.loop)
        examples = loaded.example_inputs
        meter = None
        # The target of timings is ONNX Runtime, which runs no share of a model.
        if measure and processes == 1 and any(entry.optional for entry in checked.passes):
            meter = session_measure(requests(before, checked.calibration, examples)[0])
        after = apply_recipe(before, checked, examples, verify=verify, measure=meter, progress=bar)
        if out is not None:
            bar.wait("export")
            after.export(
                out,
                **options,
                loop=loop,
                unroll=unroll,
                overwrite=overwrite,
                recipe=checked.to_dict(),
                baseline=before,
            )
    if rank > 0:
        return
    show_report(after.report, out, as_json)
    if diff and not as_json:
        console().print(Text(program_diff(before, after)), soft_wrap=True)


def export_options(
    targets: list[str] | None,
    precisions: list[str] | None,
    static: list[str] | None,
    capabilities: list[str] | None,
    default: str = "onnx",
) -> dict[str, Any]:
    """The options of `Program.export` from those of the command line.

    Raises:
        RecipeError: one that cannot be read, or a target that there is not.
    """
    names = [name for item in targets or [default] for name in item.split(",")]
    check_target_names(names)
    given = [item.rpartition("=") for item in precisions or ()]
    for_all = [value for _, sign, value in given if not sign]
    if len(for_all) > 1 or (for_all and len(given) > 1):
        raise RecipeError(
            f"--precision: found {' and '.join(precisions or ())}, expected one for all targets or "
            "TARGET=PRECISION for each"
        )
    sizes = {}
    for item in static or ():
        name, _, size = item.partition("=")
        if not size.isdecimal():
            raise RecipeError(f"--static {item}: expected NAME=SIZE, such as batch=2")
        sizes[name] = int(size)
    precision: Any = for_all[0] if for_all else {name: value for name, _, value in given} or None
    precisions_of(precision, names)
    return {
        "target": names,
        "precision": precision,
        "static": sizes or None,
        "capabilities": capabilities,
        "example": True,
    }


def check_exportable(processes: int) -> None:
    """Refuses to write a bundle of one process's share, before any work is done for it."""
    if processes > 1:
        raise RecipeError(
            f"--out: found a recipe for {processes} processes, expected one without `parallel`: a "
            "bundle has no exchange between processes; leave --out or `parallel` away"
        )


def show_report(report: Any, out: Path | None, as_json: bool) -> None:
    """Prints what passes did, what the bundle's own report says of it, and where it lies."""
    if out is not None:
        report = with_facts(report, out)
    if as_json:
        data = report.to_dict()
        data["bundle"] = None if out is None else str(out)
        print_json(data)
        return
    from optimize.report.terminal import print_report

    output = console()
    print_report(report, output)
    if out is not None:
        output.print(Text(f"bundle written to {out}"))


def with_facts(report: Any, out: Path) -> Any:
    """The report with what was found out while the bundle was written."""
    data = json.loads((out / "report.json").read_text("utf-8"))
    names = ("targets", "receipt", "costs", "predicted", "source", "budget", "kernels")
    found = {name: data[name] for name in names}
    return replace(report, notes=tuple(data["notes"]), **found)

"""`optimize solvers`: what solvers there are, and how good each is on a model by denoiser calls."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from optimize.commands.console import Json, console, print_json
from optimize.commands.models import HELP, load_model
from optimize.commands.progress import StageBar
from optimize.commands.targets import check_out, write_files
from optimize.ir.errors import RecipeError

# Those of `FuseSolver`, which needs PyTorch; a test compares them.
ScheduleName = Literal[
    "same", "time", "log_snr", "quadratic", "karras", "exponential", "lu", "beta"
]


def solvers(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help=f"Measure on this one: {HELP}")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for page, picture and numbers.")
    ] = None,
    calls: Annotated[str, typer.Option(help="Denoiser calls to measure at.")] = "4,6,8,12,16",
    solver: Annotated[
        list[str] | None, typer.Option("--solver", "-s", help="Only this one; may be repeated.")
    ] = None,
    schedule: Annotated[ScheduleName, typer.Option(help="Spacing of the noise levels.")] = "same",
    samples: Annotated[int, typer.Option(min=2, max=100_000, help="Samples per run.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    reference_calls: Annotated[
        int, typer.Option(min=6, max=10_000, help="Calls of the exact solution.")
    ] = 100,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results there.")] = False,
    as_json: Json = False,
) -> None:
    """List the solvers, or measure their quality against denoiser calls on a MODEL."""
    if model is None:
        if out is not None:
            raise RecipeError(f"--out {out}: found no MODEL to measure, expected one before it")
        _list(as_json)
        return
    counts = _counts(calls, reference_calls)
    if out is not None:
        check_out(out, overwrite, model)
    names = _known(solver or [])
    with StageBar(quiet=as_json) as bar:
        bar.wait("load")
        loaded = load_model(model)
        bar.wait("capture")
        from optimize.capture.capture_model import capture_model
        from optimize.commands.solver_figures import measure_solvers
        from optimize.ir.report import plain
        from optimize.report.plots import solver_curves
        from optimize.report.solver_page import comparison_data, render_solvers

        program = capture_model(loaded.model, loaded.example_inputs, loop=loaded.loop)
        comparison = measure_solvers(
            program,
            loaded,
            names=names,
            schedule=schedule,
            calls=counts,
            samples=samples,
            seed=seed,
            reference_calls=reference_calls,
            progress=bar,
        )
        data = plain(comparison_data(comparison))
        if out is not None:
            text = json.dumps(data, indent=2, allow_nan=False) + "\n"
            write_files(
                out,
                {
                    "solvers.png": solver_curves(comparison, "png"),
                    "solvers.json": text.encode(),
                    "index.html": render_solvers(comparison).encode(),
                },
            )
    if as_json:
        print_json(data)
    else:
        _show(comparison, out)


def _counts(text: str, reference_calls: int) -> tuple[int, ...]:
    """The columns of `--calls`.

    Raises:
        RecipeError: not whole numbers, or not fewer than the reference takes.
    """
    try:
        counts = sorted({int(item) for item in text.split(",")})
    except ValueError as error:
        raise RecipeError(
            f"--calls {text}: found no list of whole numbers, expected one such as 4,6,8"
        ) from error
    if counts[0] < 1 or counts[-1] > reference_calls // 2:
        raise RecipeError(
            f"--calls {text}: expected numbers from 1 to {reference_calls // 2}, half of "
            f"--reference-calls {reference_calls}; raise that for more"
        )
    return tuple(counts)


def _known(names: Sequence[str]) -> list[str]:
    """The names, each a solver that takes a number of calls.

    Raises:
        RecipeError: says which there are.
    """
    from optimize.passes.fuse_solver import ADAPTIVE
    from optimize.passes.solvers.catalog import SOLVERS
    from optimize.recipes.options import nearest

    for name in names:
        if name == ADAPTIVE:
            raise RecipeError(
                f"--solver {name}: takes as many calls as its tolerance needs, expected a solver "
                "of a fixed number of calls"
            )
        if name not in SOLVERS:
            raise RecipeError(f"--solver {name}: unknown; {nearest(name, SOLVERS, 'solvers')}")
    return list(dict.fromkeys(names))


def _list(as_json: bool) -> None:
    rows = [_described(name) for name in _listed()]
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, header_style="bold")
    table.add_column("solver", no_wrap=True)
    for title in ("orders", "calls per step", "models", "options", "what it is"):
        table.add_column(title)
    for row in rows:
        low, high = row["orders"]
        per_step = row["calls_per_step"]
        table.add_row(
            row["name"],
            str(low) if low == high else f"{low}-{high}",
            "its order" if per_step is None else str(per_step),
            "flow" if row["flow_only"] else "all",
            ", ".join(row["options"]),
            row["description"],
        )
    console().print(table)


def _listed() -> list[str]:
    from optimize.passes.fuse_solver import ADAPTIVE
    from optimize.passes.solvers.catalog import SOLVERS

    return [*SOLVERS, ADAPTIVE]


def _described(name: str) -> dict[str, Any]:
    import inspect

    from optimize.passes.fuse_solver import ADAPTIVE
    from optimize.passes.solvers import adaptive
    from optimize.passes.solvers.catalog import SOLVERS

    if name == ADAPTIVE:
        text = (adaptive.__doc__ or "").splitlines()[0]
        return {
            "name": name,
            "orders": [2, 3],
            "calls_per_step": None,
            "flow_only": False,
            "options": ["tolerance"],
            "description": text,
        }
    solver = SOLVERS[name]
    options = {"threshold": "thresholding"}
    return {
        "name": name,
        "orders": [1, solver.highest_order],
        "calls_per_step": solver.calls_per_step,
        "flow_only": solver.flow_only,
        "options": sorted(options.get(item, item) for item in solver.options),
        "description": inspect.cleandoc(solver.make.__doc__ or "").splitlines()[0],
    }


def _show(comparison: Any, out: Path | None) -> None:
    from optimize.report.terminal import print_solvers

    output = console()
    print_solvers(comparison, output)
    if out is not None:
        output.print(Text(f"in {out}: index.html, solvers.png, solvers.json"))

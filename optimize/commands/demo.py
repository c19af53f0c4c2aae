"""`optimize demo`: the zoo's diffusion transformer, faster at equal quality, with the proof."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from optimize.commands.console import Json, console, print_json
from optimize.commands.models import load_model
from optimize.commands.progress import StageBar
from optimize.commands.targets import check_out, make_folder, write_files

MODEL = "zoo:digits-dit"
RECIPE = "image-fast"


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path(
        "build/demo"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results there.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few samples: rough figures in seconds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Optimise the zoo's digits model, measure it, and leave bundle and report in --out."""
    check_out(out, overwrite)
    with StageBar(quiet=as_json) as bar:
        bar.wait("load")
        loaded = load_model(MODEL)
        from optimize.api import apply_recipe
        from optimize.capture.capture_model import capture_model
        from optimize.commands.demo_figures import measure_demo
        from optimize.recipes.recipe import Recipe
        from optimize.report.html import render_html
        from optimize.report.images import png
        from optimize.report.json_file import render_json

        recipe = Recipe.load(RECIPE)
        baseline = capture_model(loaded.model, loaded.example_inputs, loop=loaded.loop)
        program = apply_recipe(baseline, recipe, loaded.example_inputs, progress=bar)
        bar.wait("export")
        make_folder(out)
        bundle = out / "bundle"
        program.export(bundle, overwrite=True, recipe=recipe.to_dict())
        figures = measure_demo(loaded.model, baseline, program, bundle, quick=quick, progress=bar)
        page = render_html(figures.report, figures.samples, f"{MODEL}, {RECIPE}")
        write_files(
            out,
            {
                "report.json": render_json(figures.report).encode(),
                "report.html": page.encode(),
                "samples.png": png(figures.sheet, scale=2),
            },
        )
    _show(figures.report, out, as_json)


def _show(report: Any, out: Path, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    from optimize.report.terminal import print_report

    output = console()
    print_report(report, output)
    names = "bundle/, report.json, report.html, samples.png"
    output.print(Text(f"in {out}: {names}"))

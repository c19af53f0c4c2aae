"""`optimize tune`: searches the options of all passes for the fastest recipe within a budget."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from optimize.commands.console import Json, console, print_json
from optimize.commands.models import HELP, LoadedModel, load_model
from optimize.commands.progress import StageBar
from optimize.commands.targets import check_out, write_files
from optimize.ir.errors import QualityError, RecipeError
from optimize.ir.exporting import check_target_names

JUDGED, BATCH = 200, 20
"""Samples for the Fréchet distance, and how many at a time."""


def tune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=HELP, show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for recipe and report.")],
    budget: Annotated[
        list[str],
        typer.Option(
            "--budget",
            help="psnr=30, relative_error=0.1 or token_match=0.99; repeatable, the first is "
            "traded against speed.",
        ),
    ],
    target: Annotated[str, typer.Option("--target", help="What is timed.")] = "onnx",
    trials: Annotated[int, typer.Option("--trials", help="Recipes tried, in the study.")] = 60,
    minutes: Annotated[float, typer.Option("--minutes", help="For all of it.")] = 10.0,
    storage: Annotated[
        Path | None,
        typer.Option(
            "--storage", help="Journal of the trials: resumes them, and is shared by processes."
        ),
    ] = None,
    start: Annotated[
        list[str] | None,
        typer.Option("--start", help="A recipe to try first, besides the library's; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the search.")] = 0,
    samples: Annotated[
        int, typer.Option("--samples", min=1, max=64, help="Requests that results are compared on.")
    ] = 8,
    new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens to generate; of language models.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results there.")] = False,
    as_json: Json = False,
) -> None:
    """Search the fastest recipe of a MODEL within a quality budget."""
    from optimize.recipes.recipe import Recipe

    check_target_names([target])
    limits = read_budget(budget)
    starts = [Recipe.load(item) for item in start or ()]
    check_out(out, overwrite, model)
    from optimize.recipes.tuning.storage import check_storage
    from optimize.recipes.tuning.tune import check_search
    from optimize.recipes.tuning.tune import tune as search

    check_search(limits, trials, minutes, seed, threads)
    if storage is not None:
        check_storage(storage)
    with StageBar(quiet=as_json) as bar:
        bar.wait("load")
        loaded = load_model(model)
        bar.wait("capture")
        import torch

        from optimize.capture.capture_model import capture_model
        from optimize.passes.calibration import Calibration
        from optimize.report.tuning_page import render_tuning
        from optimize.report.tuning_plot import tuning_picture

        torch.set_num_threads(threads)
        inputs = {} if new_tokens is None else {"max_new_tokens": new_tokens}
        tuned = search(
            capture_model(loaded.model, loaded.example_inputs, loop=loaded.loop),
            limits,
            metric=budget[0].partition("=")[0],
            model=model,
            target=target,  # type: ignore[arg-type]
            trials=trials,
            minutes=minutes,
            storage=storage,
            seed=seed,
            starts=starts,
            calibration=Calibration(samples=samples, inputs=inputs),
            examples=loaded.example_inputs,
            threads=threads,
            frechet=_frechet(loaded, seed),
            progress=bar,
        )
        data = tuned.tuning.to_dict()
        files = {
            "tuned.json": (json.dumps(data, indent=2, allow_nan=False) + "\n").encode(),
            "report.html": render_tuning(tuned.tuning).encode(),
        }
        if tuned.tuning.judged:
            files["tuned.png"] = tuning_picture(tuned.tuning, "png")
        if tuned.recipe is not None:
            files["recipe.yaml"] = (_head(tuned.tuning) + tuned.recipe.to_yaml()).encode()
        else:
            (out / "recipe.yaml").unlink(missing_ok=True)
        write_files(out, files)
    if as_json:
        print_json(data)
    else:
        _show(tuned.tuning, out)
    if tuned.recipe is None:
        asked = ", ".join(budget)
        raise QualityError(
            f"budget {asked}: {tuned.why_none}; ease the budget, or try more --trials"
        )


def read_budget(given: list[str]) -> Any:
    """The budget of `NAME=VALUE` arguments, in their order.

    Raises:
        RecipeError: an unknown metric, one that stands twice, or a value that is no number.
    """
    from optimize.recipes.options import nearest
    from optimize.recipes.recipe import Budget

    known = list(Budget.__dataclass_fields__)
    found: dict[str, float] = {}
    for item in given:
        name, sign, value = item.partition("=")
        if not sign:
            raise RecipeError(f"--budget {item}: expected NAME=VALUE, such as psnr=30")
        if name not in known:
            raise RecipeError(
                f"--budget {item}: unknown metric {name!r}; {nearest(name, known, 'metrics')}"
            )
        if name in found:
            raise RecipeError(f"--budget {item}: found {name} a second time, expected it once")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise RecipeError(f"--budget {item}: found {value!r}, expected a number") from error
    try:
        return Budget(**found)
    except ValueError as error:
        raise RecipeError(f"--budget: {error}") from error


def _frechet(loaded: LoadedModel, seed: int) -> Any:
    """Judges the samples of a session, where the model has a judge."""
    judge = loaded.judge
    if judge is None:
        return None

    def distance(session: Any) -> Any:
        import numpy as np

        result = session.signature.outputs[0]
        parts = [
            session(**judge.fields(first, BATCH), seed=seed + first)[result]
            for first in range(0, JUDGED, BATCH)
        ]
        return judge.frechet(np.concatenate(parts))

    return distance


def _head(tuning: Any) -> str:
    """The comment lines of a recipe: what was measured, on what, and when."""
    from optimize.report.tuning_page import interval_text, quality_cell

    row = next(item for item in tuning.measured if item.number == tuning.chosen)
    attempt = tuning.attempt(tuning.chosen)
    facts = tuning.environment
    lines = [
        f"Found by `optimize tune {tuning.model}` on {facts['date']}, {facts['trials']} trials in "
        f"{facts['seconds']} s.",
        f"Speedup {interval_text(row.speedup)} over the unoptimised program, both on "
        f"{tuning.target}: {facts['machine']}.",
        f"{tuning.metric} {quality_cell(tuning.metric, attempt.quality[tuning.metric])} to its "
        f"results; on requests that the search did not see "
        f"{quality_cell(tuning.metric, row.fresh_quality.get(tuning.metric))}.",
        *(
            f"{interval_text(ratio)} times as fast as {name}."
            for name, ratio in tuning.ratios.items()
        ),
    ]
    return "".join(f"# {line}\n" for line in lines)


def _show(tuning: Any, out: Path) -> None:
    from optimize.ir.report import seconds_text
    from optimize.report.tuning_page import interval_text, quality_cell

    output = console()
    if tuning.measured:
        judged = any(item.frechet is not None for item in tuning.measured)
        table = Table(box=None, header_style="bold")
        head = ["", "seconds", "speedup", tuning.metric, "fresh", *(["Fréchet"] if judged else [])]
        for name in head:
            table.add_column(name, no_wrap=True)
        for item in tuning.measured:
            quality = {} if item.number is None else tuning.attempt(item.number).quality
            cells = [
                seconds_text(item.seconds),
                interval_text(item.speedup),
                quality_cell(tuning.metric, quality.get(tuning.metric)),
                quality_cell(tuning.metric, item.fresh_quality.get(tuning.metric)),
                "" if item.frechet is None else f"{item.frechet.value:.2f}",
            ]
            is_chosen = tuning.chosen is not None and item.number == tuning.chosen
            shown = [Text(cell) for cell in cells[: len(head) - 1]]
            table.add_row(Text(item.name), *shown, style="bold" if is_chosen else "")
        output.print(table)
    if tuning.chosen is not None:
        output.print(Text(f"chosen: {tuning.attempt(tuning.chosen).label}"))
    for name, ratio in tuning.ratios.items():
        output.print(Text(f"{interval_text(ratio)} times as fast as {name}"))
    for note in tuning.notes:
        output.print(Text(f"note: {note}"))
    output.print(Text(f"written to {out}"))

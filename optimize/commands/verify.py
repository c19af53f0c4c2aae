"""`optimize verify`: is a bundle whole, does it run, and does it agree with its model."""

import math
from typing import Annotated, Any

import typer
from rich.text import Text

from optimize.commands.console import Json, console, print_json
from optimize.commands.models import HELP, load_model
from optimize.commands.progress import StageBar

LIMIT = 1e-4


def verify(
    bundle: Annotated[str, typer.Argument(help="Folder of a bundle.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help=f"Optimise this again and compare. {HELP}", metavar="MODEL"),
    ] = None,
    limit: Annotated[
        float, typer.Option(min=0, help="Largest relative error against the model.")
    ] = LIMIT,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    as_json: Json = False,
) -> None:
    """Check every hash of a bundle and run it; with --model, compare it with the model."""
    from optimize.runtime.session import load

    with StageBar(quiet=as_json) as bar:
        bar.wait("hashes")
        with load(bundle) as session:
            from optimize.passes.calibration import Calibration, signature_request

            manifest = session.manifest
            request = dict(
                signature_request(manifest.signature, manifest.loop, Calibration(), {}, seed)
            )
            bar.wait("run")
            results = dict(session(**request))
    _check_finite(results)
    error = None
    if model is not None:
        with StageBar(quiet=as_json) as bar:
            error = _error_against(model, bundle, request, results, bar)
    good = error is None or error <= limit
    data = {
        "bundle": bundle,
        "files": len(manifest.files),
        "signed": False,
        "results": {name: list(array.shape) for name, array in results.items()},
        "error": error,
        "limit": None if error is None else limit,
        "verdict": "pass" if good else "fail",
    }
    if as_json:
        print_json(data)
    else:
        _show(data)
    raise typer.Exit(0 if good else 1)


def _check_finite(results: dict[str, Any]) -> None:
    import numpy as np

    from optimize.ir.errors import NumericsError

    for name, array in results.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NumericsError(f"verify: found NaN or Inf in result {name!r}")


def _error_against(
    model: str, bundle: str, request: dict[str, Any], results: dict[str, Any], bar: StageBar
) -> float:
    """Relative error of the bundle against its recipe applied to the model in PyTorch."""
    from pathlib import Path

    bar.wait("optimise the model again")
    loaded = load_model(model)
    from optimize.api import apply_recipe
    from optimize.capture.capture_model import capture_model
    from optimize.passes.pipeline import results_error
    from optimize.recipes.recipe import Recipe

    path = Path(bundle) / "recipe.yaml"
    recipe = Recipe.load(path) if path.is_file() else Recipe.load({"passes": []})
    program = capture_model(loaded.model, loaded.example_inputs, loop=loaded.loop)
    program = apply_recipe(program, recipe, loaded.example_inputs, verify=False)
    bar.wait("run the model")
    expected = {name: tensor.numpy() for name, tensor in program(**request).items()}
    error = results_error([results], [expected])
    return error if math.isfinite(error) else math.inf


def _show(data: dict[str, Any]) -> None:
    output = console()
    output.print(Text(f"{data['bundle']}: {data['files']} files, every hash as the manifest says"))
    output.print("unsigned: hashes show damage, not who made the bundle")
    for name, shape in data["results"].items():
        output.print(Text(f"runs: {name} {shape}, finite"))
    if data["error"] is not None:
        output.print(
            f"against the model: relative error {data['error']:.3g}, "
            f"limit {data['limit']:g}: {data['verdict']}"
        )

"""`optimize verify`: is a bundle whole, does it run, and does it keep what it promised."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from optimize.commands.console import Json, console, print_json
from optimize.commands.models import HELP, load_model
from optimize.commands.progress import StageBar

INCONCLUSIVE = 3
REPLACE_RECEIPT = "its figures are not of this bundle; export the bundle again"
SLOWER = 1.25
"""How many times the promised time a request may take, the fixed work taken out."""


def verify(
    bundle: Annotated[str, typer.Argument(help="Folder of a bundle.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help=f"Optimise this again and compare. {HELP}", metavar="MODEL"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Run this target of the bundle; native code needs --trust-native."),
    ] = None,
    trust_native: Annotated[
        bool, typer.Option("--trust-native", help="Allow native code of the bundle to run.")
    ] = False,
    public_key: Annotated[
        Path | None,
        typer.Option(
            "--public-key", help="Key in PEM that must have signed the bundle.", metavar="PEM"
        ),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(min=0, help="Largest relative error; 1e-4, more where precision was lowered."),
    ] = None,
    remeasure: Annotated[
        bool,
        typer.Option("--remeasure", help="Measure speed and error again and hold them to it."),
    ] = False,
    slower: Annotated[
        float, typer.Option(min=1.0, help="Times the promised time that still pass.")
    ] = SLOWER,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse files that the manifest does not name.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every hash of a bundle, run it, and compare it with what it promised.

    A bundle from `optimize run` or `optimize export` holds a request and its results; they are
    compared with what it gives here. With --model, it is compared with the model as well.
    """
    from optimize.measure.receipt import example_limit, read_report, stored_example
    from optimize.runtime.bundle import open_bundle
    from optimize.runtime.session import load

    with StageBar(quiet=as_json) as bar:
        bar.wait("hashes")
        if strict:
            open_bundle(bundle, strict=True)
        chosen: Any = target
        key = None if public_key is None else public_key.read_bytes()
        native: Any = "native" if trust_native else None
        with load(bundle, target=chosen, trust=native, public_key=key) as session:
            manifest = session.manifest
            stored = stored_example(bundle)
            request = _request(manifest, seed) if stored is None else stored.fields()
            bar.wait("run")
            results = _numbers(session(**request))
            again = _numbers(session(**request))
            report = read_report(bundle)
            speed = None
            if remeasure:
                bar.wait("measure")
                speed = _speed(session, request, report, slower)
    _check_finite(results)
    bound = example_limit(report, session.target) if limit is None else limit
    checks: dict[str, dict[str, Any]] = {
        "repeated": _check(_difference(again, results), 0.0),
    }
    if stored is not None:
        checks["stored results"] = _check(_difference(results, stored.results), bound)
    if model is not None:
        with StageBar(quiet=as_json) as bar:
            checks["model"] = _check(_error_against(model, bundle, request, results, bar), bound)
    receipt = _receipt_check(report, manifest)
    good = all(check["holds"] for check in checks.values()) and receipt["holds"]
    verdict, code = ("pass", 0) if good else ("fail", 1)
    if good and speed is not None and speed["verdict"] != "pass":
        verdict = speed["verdict"]
        code = 1 if verdict == "fail" else INCONCLUSIVE
    data = {
        "bundle": bundle,
        "files": len(manifest.files),
        "signed": session.provenance != "unsigned",
        "provenance": session.provenance,
        "target": session.target,
        "reason": session.reason,
        "results": {name: list(array.shape) for name, array in results.items()},
        "checks": checks,
        "error": checks.get("model", checks.get("stored results", {})).get("error"),
        "receipt": receipt,
        "speed": speed,
        "verdict": verdict,
    }
    if as_json:
        print_json(data)
    else:
        _show(data)
    raise typer.Exit(code)


def _request(manifest: Any, seed: int) -> dict[str, Any]:
    from optimize.passes.calibration import Calibration, signature_request

    return dict(signature_request(manifest.signature, manifest.loop, Calibration(), {}, seed))


def _receipt_check(report: dict[str, Any], manifest: Any) -> dict[str, Any]:
    """Whether the receipt is of the graphs, weights and tables that the bundle has."""
    from optimize.runtime.manifest import TABLES_FILE, WEIGHTS_FILE

    receipt = report.get("receipt")
    receipt = receipt if isinstance(receipt, dict) else {}
    files = {"weights": WEIGHTS_FILE, "tables": TABLES_FILE}
    said = {files[name]: receipt[name] for name in files if name in receipt}
    graphs = receipt.get("graphs")
    if graphs is not None:
        paths = {role: entry.file for role, entry in manifest.graphs.items()}
        if not isinstance(graphs, dict) or set(graphs) != set(paths):
            found = ", ".join(sorted(graphs)) or "none" if isinstance(graphs, dict) else graphs
            why = f"of graphs {found}, expected {', '.join(sorted(paths))}"
            return {"holds": False, "why": f"{why}; {REPLACE_RECEIPT}"}
        said |= {paths[role]: digest for role, digest in graphs.items()}
    for path, digest in said.items():
        expected = manifest.files[path].sha256
        if digest != expected:
            why = f"of another {path}: found {str(digest)[:12]}…, expected "
            return {"holds": False, "why": f"{why}{expected[:12]}…; {REPLACE_RECEIPT}"}
    if not said:
        return {"holds": True, "why": "none that names graphs or weights"}
    return {"holds": True, "why": f"of these {len(said)} files, by their hashes"}


def _numbers(results: Any) -> dict[str, Any]:
    return {name: item for name, item in results.items() if hasattr(item, "dtype")}


def _difference(results: dict[str, Any], expected: Any) -> float:
    from optimize.passes.pipeline import results_error

    error = results_error([results], [dict(expected)])
    return error if math.isfinite(error) else math.inf


def _check(error: float, limit: float) -> dict[str, Any]:
    return {"error": error, "limit": limit, "holds": error <= limit}


def _speed(session: Any, request: dict[str, Any], report: dict[str, Any], slower: float) -> Any:
    """The speed here, held against the receipt where that is of such a machine."""
    from optimize.measure.receipt import measure_speed

    receipt = report.get("receipt") or {}
    found = measure_speed(lambda: session(**request))
    data: dict[str, Any] = {
        "seconds": found.seconds,
        "ratio": found.ratio,
        "promised": receipt.get("ratio"),
        "machine": found.machine,
    }
    if session.target != "onnx" or not receipt:
        return data | {
            "verdict": "inconclusive",
            "why": "the bundle has no receipt for this target",
        }
    if receipt.get("machine") != found.machine:
        why = f"not comparable: the receipt is of {receipt.get('machine')}, found {found.machine}"
        return data | {"verdict": "inconclusive", "why": why}
    times = found.ratio / float(receipt["ratio"])
    why = f"{times:.2f} times the promised time, limit {slower:g}"
    return data | {"verdict": "pass" if times <= slower else "fail", "why": why}


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
    bar.wait("optimise the model again")
    loaded = load_model(model)
    from optimize.api import apply_recipe
    from optimize.capture.capture_model import capture_model
    from optimize.recipes.recipe import Recipe

    path = Path(bundle) / "recipe.yaml"
    recipe = Recipe.load(path) if path.is_file() else Recipe.load({"passes": []})
    program = capture_model(loaded.model, loaded.example_inputs, loop=loaded.loop)
    program = apply_recipe(program, recipe, loaded.example_inputs, verify=False)
    bar.wait("run the model")
    expected = {name: tensor.numpy() for name, tensor in program(**request).items()}
    return _difference(results, expected)


def _show(data: dict[str, Any]) -> None:
    output = console()
    output.print(Text(f"{data['bundle']}: {data['files']} files, every hash as the manifest says"))
    output.print(Text(f"{data['provenance']}: hashes show damage, not who made the bundle"))
    output.print(Text(f"target {data['target']}: {data['reason']}"))
    for name, shape in data["results"].items():
        output.print(Text(f"runs: {name} {shape}, finite"))
    for name, check in data["checks"].items():
        output.print(
            f"against {name}: relative error {check['error']:.3g}, limit {check['limit']:g}: "
            + ("pass" if check["holds"] else "fail")
        )
    receipt = data["receipt"]
    output.print(
        Text(f"receipt: {receipt['why']}: {'pass' if receipt['holds'] else 'fail'}"), soft_wrap=True
    )
    if data["speed"] is not None:
        speed = data["speed"]
        output.print(Text(f"speed: {speed['seconds']:.4g} s; {speed['why']}: {speed['verdict']}"))
    if "stored results" not in data["checks"]:
        output.print("the bundle stores no request with results: export it with example=True")

"""`optimize export`: a model, or a bundle that is there, becomes what serves it."""

import re
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from optimize.commands.console import Json, console, print_json
from optimize.commands.models import HELP, load_model
from optimize.commands.progress import StageBar
from optimize.commands.run import (
    Capabilities,
    Form,
    Overwrite,
    Precisions,
    Static,
    Targets,
    Unroll,
    export_options,
    show_report,
)
from optimize.commands.targets import check_out
from optimize.ir.errors import RecipeError
from optimize.ir.exporting import check_form
from optimize.runtime.manifest import MANIFEST_FILE

TRITON, BROWSER = "Triton Inference Server", "Browser"


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"A bundle; or {HELP}", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    layout: Annotated[
        str, typer.Option("--layout", help="What to write: bundle, triton-server or browser.")
    ] = "bundle",
    target: Targets = None,
    precision: Precisions = None,
    static: Static = None,
    capability: Capabilities = None,
    loop: Form = "step",
    unroll: Unroll = None,
    overwrite: Overwrite = False,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Of the model in its addresses.", rich_help_panel=TRITON),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="cpu (default) or gpu.", rich_help_panel=TRITON),
    ] = None,
    instances: Annotated[
        int | None,
        typer.Option("--instances", help="Processes with a bundle each.", rich_help_panel=TRITON),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency", help="Requests an instance runs at once.", rich_help_panel=TRITON
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", help="CPU threads of one operator.", rich_help_panel=TRITON),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="Answer while the loop runs (decoupled).", rich_help_panel=TRITON
        ),
    ] = False,
    ort_web: Annotated[
        Path | None,
        typer.Option(
            "--ort-web",
            help="Folder dist of an installed onnxruntime-web.",
            rich_help_panel=BROWSER,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model as a bundle as it is, without any pass; or a bundle as what serves it."""
    from optimize.export.layouts import check_layout, write_layout

    check_form(loop, unroll)
    given = {
        "name": name,
        "device": device,
        "instances": instances,
        "concurrency": concurrency,
        "threads": threads,
        "stream": stream or None,
        "ort-web": ort_web,
    }
    options = {option: value for option, value in given.items() if value is not None}
    check_layout(layout, options)
    export_as = export_options(target, precision, static, capability)
    if (Path(model) / MANIFEST_FILE).is_file():
        _check_nothing_to_build(
            layout,
            {
                "target": target,
                "precision": precision,
                "static": static,
                "capability": capability,
                "loop": None if loop == "step" else loop,
                "unroll": unroll,
            },
        )
        check_out(out, overwrite, model)
        write_layout(layout, Path(model), out, overwrite=overwrite, options=options)
        _say_written(layout, out, as_json)
        return
    check_out(out, overwrite, model)
    export_as |= {"loop": loop, "unroll": unroll}
    loaded = load_model(model)
    with StageBar(quiet=as_json) as bar:
        bar.wait("capture")
        from optimize.capture.capture_model import capture_model

        program = capture_model(loaded.model, loaded.example_inputs, loop=loaded.loop)
        bar.wait("export")
        if layout == "bundle":
            program.export(out, **export_as, overwrite=overwrite)
        else:
            with tempfile.TemporaryDirectory() as folder:
                bundle = Path(folder) / model_name(model)
                program.export(bundle, **export_as)
                write_layout(layout, bundle, out, overwrite=overwrite, options=options)
    if layout == "bundle":
        show_report(program.report, out, as_json)
    else:
        _say_written(layout, out, as_json)


def model_name(model: str) -> str:
    """A MODEL argument as a name of letters, digits, `_`, `-` and `.`."""
    last = Path(model.removeprefix("zoo:")).name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", last).strip("-._") or "model"


def _check_nothing_to_build(layout: str, given: dict[str, Any]) -> None:
    """Refuses what a bundle that is there can no longer take."""
    if layout == "bundle":
        raise RecipeError(
            "MODEL: found a bundle, expected a model to make one from; to serve the bundle pass "
            "--layout triton-server or --layout browser"
        )
    for option, value in given.items():
        if value is not None:
            raise RecipeError(
                f"--{option}: found it with a bundle, whose graphs are built already; leave it "
                "away, or export the model again"
            )


def _say_written(layout: str, out: Path, as_json: bool) -> None:
    if as_json:
        print_json({"layout": layout, "out": str(out)})
    else:
        console().print(Text(f"{layout} layout written to {out}"), soft_wrap=True)

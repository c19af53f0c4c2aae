"""`optimize gate`: a slower, larger or worse bundle fails; and the trend of many gates."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from optimize.commands.console import Json, console, fail, print_json
from optimize.commands.progress import StageBar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optimize.gate.checks import Check, Verdict

STYLES = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def gate(
    bundle: Annotated[
        str | None, typer.Argument(help="The bundle in question.", show_default=False)
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            "-b",
            metavar="REF",
            help="Bundle to compare with, run in turns; or a .json file, recorded when missing.",
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", "-p", metavar="YAML", help="What is allowed; see --init."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder for gate.json, JUnit, Markdown and benchmark formats."
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", help="Folder that keeps a receipt of each run, for the history."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Run this target of both bundles, see `optimize verify`.")
    ] = None,
    trust_native: Annotated[
        bool, typer.Option("--trust-native", help="Allow native code of the bundles to run.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=1.0, max=3600.0, help="For measuring; the policy's else.")
    ] = None,
    clock: Annotated[
        bool, typer.Option("--time/--no-time", help="Measure times and memory, too.")
    ] = True,
    update: Annotated[
        bool, typer.Option("--update", help="Record the .json baseline anew.")
    ] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="No baseline yet exits with 0 instead of 3.")
    ] = False,
    init: Annotated[
        bool, typer.Option("--init", help="Write gate.yaml and a workflow for GitHub here.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fail when a bundle got slower, larger or worse than its baseline.

    Exits with 0 when everything passed, 1 when something failed, and 3 when it could not be
    decided: no baseline yet, one of another machine, or times too noisy to tell.
    """
    if init:
        _start()
        return
    if bundle is None or baseline is None:
        missing = "BUNDLE" if bundle is None else "--baseline REF"
        fail(f"gate: found no {missing}, expected `optimize gate BUNDLE --baseline REF`", 2)
    from dataclasses import replace

    from optimize.gate.checks import EXIT_CODES
    from optimize.gate.formats import tell_github, to_dict, write_files
    from optimize.gate.gate import gate_bundle
    from optimize.gate.history import keep
    from optimize.gate.policy import load_policy

    rules = load_policy(policy)
    if seconds is not None:
        rules = replace(rules, seconds=seconds)
    native: Any = "native" if trust_native else None
    with StageBar(quiet=as_json) as bar:
        verdict = gate_bundle(
            bundle,
            baseline,
            rules,
            target=target,
            trust=native,
            clock=clock,
            update=update,
            tell=lambda stage, share: bar(stage, round(100 * share), 100),
        )
    if out is not None:
        write_files(verdict, out)
    if store is not None:
        keep(verdict, store)
    if as_json:
        print_json(to_dict(verdict))
    else:
        _show(verdict)
        for line in tell_github(verdict, os.environ):
            typer.echo(line)
    code = EXIT_CODES[verdict.outcome]
    missing_only = [check.metric for check in verdict.checks] == ["baseline"]
    raise typer.Exit(0 if missing_only and allow_missing else code)


def _start() -> None:
    from optimize.gate.starter import write_starter

    for path in write_starter(Path.cwd()):
        console().print(Text(f"wrote {path.relative_to(Path.cwd())}"))
    console().print("edit the two `optimize run` lines of the workflow, then commit both files")


def _rows(checks: "Sequence[Check]") -> "list[Check]":
    """One row per metric; those that passed for several kernels share the row of the largest."""
    from dataclasses import replace

    from optimize.gate.costs import base_metric

    rows: dict[str, Check] = {}
    for check in checks:
        base = base_metric(check.metric)
        if check.outcome != "pass" or base == check.metric:
            rows[f"{len(rows)}"] = check
        elif base not in rows or (check.ratio or 0) > (rows[base].ratio or 0):
            rows[base] = replace(check, metric=base)
    return list(rows.values())


def _show(verdict: "Verdict") -> None:
    output = console()
    table = Table("", "metric", "candidate / baseline", box=None, header_style="bold")
    for check in _rows(verdict.checks):
        shown = "" if check.ratio is None else f"{check.ratio:.3f}"
        if check.low is not None and check.high is not None:
            shown += f" [{check.low:.3f}, {check.high:.3f}]"
        told = check.outcome if check.gates else "ignored"
        table.add_row(Text(told, STYLES[check.outcome]), Text(check.metric), Text(shown))
    output.print(table)
    for check in verdict.checks:
        if check.outcome != "pass" or check.metric in ("cpu_time", "wall_time"):
            output.print(
                Text(check.message, "" if check.outcome == "pass" else STYLES[check.outcome])
            )
    for note in verdict.notes:
        output.print(Text(f"note: {note}"))
    text = f"{verdict.candidate} against {verdict.baseline}: {verdict.outcome}"
    output.print(Text(text, f"bold {STYLES[verdict.outcome]}"))


def gate_history(
    store: Annotated[Path, typer.Argument(help="Folder of receipts, see `gate --store`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path(
        "gate-history.html"
    ),
    as_json: Json = False,
) -> None:
    """Draw the trend of stored gate receipts as one self-contained HTML page."""
    from optimize.gate.history import read_history, write_page

    history = read_history(store)
    write_page(history, out)
    if as_json:
        print_json({"page": str(out), "receipts": len(history.points), "creep": history.creep()})
        return
    for text in history.creep():
        console().print(Text(text, "yellow"))
    console().print(Text(f"{len(history.points)} receipts, page written to {out}"))

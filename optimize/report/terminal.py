"""A report as tables on a terminal."""

import textwrap

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from optimize.ir.report import Report, amount, calls_text, process_cells, row_cells, seconds_text
from optimize.measure.solver_comparison import (
    METRIC_NAMES,
    Metric,
    SolverComparison,
    metric_text,
)
from optimize.report.facts import (
    COST_HEAD,
    KERNEL_HEAD,
    QUALITY_HEAD,
    cost_cells,
    kernel_cells,
    quality_cells,
    receipt_cells,
)
from optimize.report.frame_tiles import HEAD, FrameTiles, frame_tiles
from optimize.report.visual_text import print_visual_tokens
from optimize.report.visual_tokens import pruning_note, visual_tokens

HEADER_WIDTH = 12
STYLES = {"baseline": "", "ours": "bold green", "control": "yellow", "part": "dim"}


def print_report(report: Report, console: Console) -> None:
    """Prints the passes, what was measured, and what is known of the bundle."""
    if report.passes:
        console.print(passes_table(report))
    for record in report.passes:
        if record.declined is not None:
            console.print(Text(f"{record.name} declined: {record.declined}", "yellow"))
        if cells := process_cells(record):
            console.print(processes_table(cells))
    tiles = frame_tiles(report)
    if tiles is not None:
        console.print(tiles_table(tiles))
        for sentence in tiles.summary():
            console.print(Text(sentence))
    tokens = visual_tokens(report)
    if tokens is not None:
        print_visual_tokens(tokens, console)
    pruning = pruning_note(report)
    if pruning is not None:
        console.print(Text(f"note on pruning: {pruning}", "yellow"))
    if report.rows:
        console.print(rows_table(report))
    if report.speedup is not None:
        text = f"{report.speedup:.2f}x less time per sample than the baseline"
        console.print(Text(text, "bold green"))
    print_facts(report, console)
    for note in report.notes:
        console.print(Text(f"note: {note}", "dim"))


def print_facts(report: Report, console: Console) -> None:
    """Prints what a bundle costs and what its receipt says; nothing where there is no bundle."""
    tables = {
        "Cost of a request": (COST_HEAD, cost_cells(report)),
        "Kernels on GPUs": (KERNEL_HEAD, kernel_cells(report)),
        "Quality": (QUALITY_HEAD, quality_cells(report) if report.receipt else []),
    }
    for title, (head, rows) in tables.items():
        if rows:
            table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE)
            for place, name in enumerate(head):
                table.add_column(name, justify="right" if place else "left", overflow="fold")
            for row in rows:
                table.add_row(*map(Text, row))
            console.print(table)
    if not report.receipt:
        return
    console.print(Text("Receipt", "bold"))
    for name, value in receipt_cells(report):
        console.print(Text(f"  {name}: {value}"), soft_wrap=True)
    for note in (
        report.receipt.get("quality_note"),
        report.receipt.get("speedup", {}).get("note"),
    ):
        if note is not None:
            console.print(Text(f"  {note}", "dim"))


def passes_table(report: Report) -> Table:
    """One line per pass."""
    table = Table(title="Passes", title_justify="left", title_style="bold", box=SIMPLE)
    table.add_column("pass", no_wrap=True)
    for name in ("sites", "FLOPs before", "FLOPs after", "error", "time"):
        table.add_column(name, justify="right")
    for record in report.passes:
        cells = [
            "\n  ".join(item for item in (record.name, calls_text(record)) if item is not None),
            str(len(record.sites)) if record.declined is None else "declined",
            amount(record.flops_before),
            amount(record.flops_after),
            "" if record.error is None else f"{record.error:.3g}",
            seconds_text(record.seconds),
        ]
        table.add_row(*map(Text, cells))
    return table


def processes_table(cells: list[list[str]]) -> Table:
    """What each process does per step, with one and with all."""
    table = Table(title="Processes", title_justify="left", title_style="bold", box=SIMPLE)
    header, *rows = cells
    for name in header:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def rows_table(report: Report) -> Table:
    """One line per measured row."""
    metrics = list(dict.fromkeys(name for row in report.rows for name in row.quality))
    table = Table(title="Measured", title_justify="left", title_style="bold", box=SIMPLE)
    table.add_column("")
    for name in ("calls", "time per sample", *metrics):
        # Headers are broken by hand: numbers must stay whole in a terminal of 80 columns.
        header = Text("\n".join(textwrap.wrap(name, HEADER_WIDTH)))
        table.add_column(header, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(*map(Text, row_cells(row, metrics)), style=STYLES[row.role])
    return table


def tiles_table(tiles: FrameTiles) -> Table:
    """One line per layer whose attention runs in frame tiles."""
    table = Table(title="Frame tiles", title_justify="left", title_style="bold", box=SIMPLE)
    for name in HEAD:
        # A name that is too long is broken: layers differ at its end.
        table.add_column(name, justify="left" if name == HEAD[0] else "right", overflow="fold")
    for row in tiles.rows(named=False):
        table.add_row(*map(Text, row))
    return table


def print_solvers(comparison: SolverComparison, console: Console) -> None:
    """Prints a table per metric, the clearly best of a column in bold, then what is left out."""
    for metric in comparison.metrics:
        console.print(Text(METRIC_NAMES[metric], "bold"))
        console.print(solvers_table(comparison, metric))
        own = comparison.captured_score.value(metric)
        if own is not None:
            text = f"{comparison.captured}, as it is: {metric_text(metric, own)}\n"
            console.print(Text(text, "dim"))
    for name, reason in comparison.left_out.items():
        console.print(Text(f"{name} left out: {reason}", "yellow"))
    reached = comparison.calls_to_captured()
    if reached:
        first = min(reached.values())
        names = ", ".join(name for name, calls in reached.items() if calls == first)
        text = f"as close as {comparison.captured}, with {first} calls: {names}"
    else:
        text = f"none of these is as close as {comparison.captured}"
    console.print(Text(text, "bold"))
    for note in comparison.notes:
        console.print(Text(f"note: {note}", "dim"))


def solvers_table(comparison: SolverComparison, metric: Metric) -> Table:
    """One line per solver, one column per number of calls."""
    table = Table(box=SIMPLE)
    table.add_column("solver", no_wrap=True)
    for calls in comparison.calls:
        table.add_column(str(calls), justify="right", no_wrap=True)
    best = {calls: comparison.clearly_best(calls, metric) for calls in comparison.calls}
    for line in comparison.lines:
        cells = {
            calls: line.scores[calls].value(metric) if calls in line.scores else None
            for calls in comparison.calls
        }
        if any(value is not None for value in cells.values()):
            shown = [
                Text(
                    "-" if value is None else metric_text(metric, value),
                    "bold green" if best[calls] is line else "",
                )
                for calls, value in cells.items()
            ]
            table.add_row(Text(line.name), *shown)
    return table

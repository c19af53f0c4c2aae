"""Plots for reports, as files whose bytes depend on nothing but the data."""

import io
from collections.abc import Sequence
from typing import Literal

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from optimize.ir.report import Curve, Row
from optimize.measure.solver_comparison import METRIC_NAMES, SolverComparison, SolverLine

MARKS = {"baseline": "s", "ours": "*", "control": "x", "part": "."}

COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#888888",
)  # fmt: skip
"""Okabe and Ito's, told apart by the colour-blind; grey for yellow, which is faint on white."""

SOLVER_MARKS = "osD^vPX*"
STROKES = {1: ":", 2: "-", 3: "--"}
MIXED_STROKE = "-."


def calls_versus_quality(curves: Sequence[Curve], rows: Sequence[Row], metric: str) -> bytes:
    """Curves of a metric over denoiser calls, with the measured rows as marks."""
    with matplotlib.rc_context({"svg.hashsalt": "optimize", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            axes.plot(*zip(*curve.points, strict=True), marker=".", label=curve.name)
        for row in rows:
            if metric in row.quality:
                point = ([row.denoiser_calls], [row.quality[metric]])
                size = 14 if row.role == "ours" else 8
                axes.plot(*point, MARKS[row.role], markersize=size, label=row.name)
        axes.set_xlabel("denoiser calls per sample")
        axes.set_ylabel(metric)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        values = [value for curve in curves for _, value in curve.points]
        if values and min(values) > 0 and max(values) > 10 * min(values):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        return _file(figure, "svg")


def solver_curves(comparison: SolverComparison, kind: Literal["svg", "png"]) -> bytes:
    """Distance to the exact solution over denoiser calls, a line per solver.

    Colour and mark are the solver's, the stroke its order. The legend has the best at the most
    calls first.
    """
    with matplotlib.rc_context({"svg.hashsalt": "optimize", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9.5, 5), layout="constrained")
        axes = figure.subplots()
        lines = [line for line in comparison.lines if _points(line)]
        solvers = list(dict.fromkeys(line.options["solver"] for line in lines))
        for line in sorted(lines, key=lambda item: _points(item)[-1][1]):
            look = solvers.index(line.options["solver"]) % len(COLOURS)
            mixed = "dualfast" in line.options
            axes.plot(
                *zip(*_points(line), strict=True),
                color=COLOURS[look],
                marker=SOLVER_MARKS[look],
                linestyle=MIXED_STROKE if mixed else STROKES[line.options.get("order", 1)],
                markersize=5,
                linewidth=1.5,
                label=line.name,
            )
        limit = comparison.captured_score.value("distance")
        if limit:
            axes.axhline(
                limit, color="#444444", linewidth=1, label=f"as it is: {comparison.captured}"
            )
        axes.set_title(
            f"{comparison.model}: {comparison.samples} samples, seed {comparison.seed}, "
            f"schedule {comparison.schedule}",
            loc="left",
        )
        axes.set_xlabel("denoiser calls per sample")
        axes.set_ylabel(METRIC_NAMES["distance"])
        axes.set_xticks(comparison.calls)
        axes.set_yscale("log")
        # One decade may have no power of ten inside: 1, 2 and 5 of each are named.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)
        return _file(figure, kind)


def _points(line: SolverLine) -> list[tuple[int, float]]:
    """(calls, distance) of a line, where a logarithmic axis can show it."""
    values = [(calls, score.value("distance")) for calls, score in line.scores.items()]
    return [(calls, value) for calls, value in values if value]


def _file(figure: Figure, kind: Literal["svg", "png"]) -> bytes:
    metadata = {"Date": None, "Creator": "optimize"} if kind == "svg" else {"Software": "optimize"}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata, dpi=150)
    return buffer.getvalue()

"""Plots for reports, as SVG whose bytes depend on nothing but the data."""

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from optimize.ir.report import Curve, Row

MARKS = {"baseline": "s", "ours": "*", "control": "x", "part": "."}


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
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "optimize"})
    return buffer.getvalue()

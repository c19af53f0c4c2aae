"""A comparison of solvers as a self-contained page, and as data."""

import dataclasses
from typing import Any

from optimize.ir.report import plain
from optimize.measure.quality import Interval
from optimize.measure.solver_comparison import (
    METRIC_NAMES,
    Metric,
    Score,
    SolverComparison,
    SolverLine,
    metric_text,
)
from optimize.report.html import render_page
from optimize.report.images import data_uri
from optimize.report.plots import solver_curves


def comparison_data(comparison: SolverComparison) -> dict[str, Any]:
    """All numbers as JSON-able data, with the best line of each column; null is no number."""
    best = {
        metric: {calls: _name(comparison.best(calls, metric)) for calls in comparison.calls}
        for metric in comparison.metrics
    }
    derived = {"best": best, "calls_to_captured": comparison.calls_to_captured()}
    data: dict[str, Any] = plain({**_fields(comparison), **derived})
    return data


def render_solvers(comparison: SolverComparison) -> str:
    """The page of a comparison."""
    reached = comparison.calls_to_captured()
    return render_page(
        "solvers.html.j2",
        f"Solvers of {comparison.model}",
        comparison=comparison,
        picture=data_uri(solver_curves(comparison, "svg"), "image/svg+xml"),
        tables=[_table(comparison, metric) for metric in comparison.metrics],
        reached=reached,
        fewest=min(reached.values(), default=None),
        best={calls: _name(comparison.best(calls)) for calls in comparison.recipes},
    )


def _fields(item: Any) -> dict[str, Any]:
    return {entry.name: getattr(item, entry.name) for entry in dataclasses.fields(item)}


def _name(line: SolverLine | None) -> str | None:
    return None if line is None else line.name


def _table(comparison: SolverComparison, metric: Metric) -> dict[str, Any]:
    """Heading and rows of a metric; a cell has text, interval and whether it is clearly best."""
    best = {calls: comparison.clearly_best(calls, metric) for calls in comparison.calls}
    rows = []
    for line in comparison.lines:
        cells = [
            {
                **_cell(line.scores.get(calls), metric),
                "reason": line.declined.get(calls, ""),
                "best": best[calls] is line,
            }
            for calls in comparison.calls
        ]
        if any(cell["text"] for cell in cells):
            rows.append({"name": line.name, "cells": cells})
    own = _cell(comparison.captured_score, metric)
    return {"title": METRIC_NAMES[metric], "rows": rows, "own": own}


def _cell(score: Score | None, metric: Metric) -> dict[str, Any]:
    found = None if score is None else getattr(score, metric)
    if found is None:
        return {"text": "", "interval": ""}
    if isinstance(found, Interval):
        low, high = (metric_text(metric, value) for value in (found.low, found.high))
        return {"text": metric_text(metric, found.value), "interval": f"{low}–{high}"}
    return {"text": metric_text(metric, found), "interval": ""}

"""A search for a recipe as a self-contained page."""

from typing import Any

import yaml

from optimize.ir.report import seconds_text
from optimize.measure.quality import Interval
from optimize.report.html import render_page
from optimize.report.images import data_uri
from optimize.report.tuning import Attempt, Measurement, Tuning
from optimize.report.tuning_plot import tuning_picture

MOST_ROWS = 200
"""Attempts in the table; all of them are in the JSON file."""


def render_tuning(tuning: Tuning) -> str:
    """The page of a search."""
    return render_page(
        "tuning.html.j2",
        f"Recipe search for {tuning.model}",
        tuning=tuning,
        budget=", ".join(f"{name}={limit:g}" for name, limit in tuning.limits.items()),
        found=next((row for row in tuning.measured if row.number == tuning.chosen), None)
        if tuning.chosen is not None
        else None,
        picture=data_uri(tuning_picture(tuning, "svg"), "image/svg+xml") if tuning.judged else None,
        judged=any(item.frechet is not None for item in tuning.measured),
        measured=[_measured(tuning, item) for item in tuning.measured],
        ratios={name: interval_text(ratio) for name, ratio in tuning.ratios.items()},
        attempts=[_row(tuning, item) for item in tuning.attempts[:MOST_ROWS]],
        more=max(0, len(tuning.attempts) - MOST_ROWS),
    )


def interval_text(interval: Interval) -> str:
    """A value with its interval, two decimals."""
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def quality_cell(metric: str, value: float | None) -> str:
    """A quality as a table shows it."""
    if value is None:
        return ""
    return f"{value:.1f} dB" if metric == "psnr" else f"{value:.4g}"


def _measured(tuning: Tuning, item: Measurement) -> dict[str, Any]:
    attempt = None if item.number is None else tuning.attempt(item.number)
    metric = tuning.metric
    return {
        "name": item.name,
        "role": "ours" if item.number is not None and item.number == tuning.chosen else "",
        "seconds": seconds_text(item.seconds),
        "speedup": interval_text(item.speedup),
        "quality": "" if attempt is None else quality_cell(metric, attempt.quality.get(metric)),
        "fresh": quality_cell(metric, item.fresh_quality.get(metric)),
        "frechet": "" if item.frechet is None else interval_text(item.frechet),
    }


def _row(tuning: Tuning, item: Attempt) -> dict[str, Any]:
    seconds = item.predicted_seconds
    return {
        "label": item.label,
        "role": "ours" if item.number == tuning.chosen else "",
        "front": item.number in tuning.front,
        "seconds": "" if seconds is None else seconds_text(seconds),
        "quality": quality_cell(tuning.metric, item.quality.get(tuning.metric)),
        "passes": [_pass_text(entry) for entry in item.passes],
        "reason": item.reason,
    }


def _pass_text(entry: Any) -> str:
    ((name, options),) = entry.items() if isinstance(entry, dict) else ((entry, {}),)
    shown = ", ".join(f"{key} {_short(value)}" for key, value in options.items())
    return f"{name}: {shown}" if shown else str(name)


def _short(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).split("\n...")[0].strip()

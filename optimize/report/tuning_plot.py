"""The picture of a search: speed against quality, every attempt a dot."""

import math
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from optimize.report.plots import COLOURS, figure_file
from optimize.report.tuning import Attempt, Measurement, Tuning

BLUE, RED, GREEN = COLOURS[:3]
GREY = "#9a9a9a"
AXIS = {
    "psnr": "PSNR to the unoptimised result, dB",
    "relative_error": "relative error to the unoptimised result (less is better)",
    "token_match": "share of tokens equal to the unoptimised program's",
}
LABEL_GAP = 0.055
"""Least vertical distance of two labels, as a share of the axis."""


def tuning_picture(tuning: Tuning, kind: Literal["svg", "png"]) -> bytes:
    """Seconds of a request against quality.

    Hollow dots are predictions, filled marks are measured; a thin line joins the two of one
    attempt. Results equal to the unoptimised ones stand at the upper edge.
    """
    with matplotlib.rc_context(
        {"svg.hashsalt": "optimize", "svg.fonttype": "none", "text.parse_math": False}
    ):
        return figure_file(_figure(tuning), kind)


def _figure(tuning: Tuning) -> Figure:
    figure = Figure(figsize=(9.5, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    if tuning.metric == "relative_error":
        axes.set_yscale("log")
        axes.invert_yaxis()
    heights = _heights(tuning)
    drawn = tuning.judged
    axes.plot(
        [_seconds(item) for item in drawn],
        [heights[item.number] for item in drawn],
        "o",
        color=GREY,
        markerfacecolor="none",
        markersize=5,
        label="tried: quality measured, seconds predicted",
    )
    front = [tuning.attempt(number) for number in tuning.front]
    axes.plot(
        [_seconds(item) for item in front],
        [heights[item.number] for item in front],
        "-",
        color=BLUE,
        linewidth=1.2,
        label="Pareto front of the predictions",
    )
    _measured(axes, tuning, heights)
    limit = tuning.limits[tuning.metric]
    axes.axhline(limit, color=RED, linewidth=1, linestyle="--", label=f"budget: {limit:g}")
    _labels(axes, tuning, heights)
    axes.set_title(
        f"{tuning.model} for {tuning.target}: {len(tuning.attempts)} trials, "
        f"{len(drawn)} with known quality",
        loc="left",
    )
    axes.set_xlabel("seconds per request")
    axes.set_ylabel(AXIS[tuning.metric])
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    return figure


def _measured(axes: Axes, tuning: Tuning, heights: dict[int, float]) -> None:
    label = f"measured ({tuning.target})"
    for item in tuning.measured:
        if item.number is None:
            axes.axvline(
                item.seconds, color="#444444", linewidth=1, linestyle=":", label="unoptimised"
            )
            continue
        height = heights[item.number]
        predicted = _seconds(tuning.attempt(item.number))
        axes.plot([predicted, item.seconds], [height, height], "-", color=GREY, linewidth=0.7)
        chosen = item.number == tuning.chosen
        axes.plot(
            [item.seconds],
            [height],
            "*" if chosen else "o",
            color=GREEN if chosen else BLUE,
            markersize=15 if chosen else 6,
            label="the recipe found" if chosen else label,
            zorder=4 if chosen else 3,
        )
        label = label if chosen else "_"


def _labels(axes: Axes, tuning: Tuning, heights: dict[int, float]) -> None:
    """Names of the known recipes and of the chosen one, kept apart where they would overlap."""
    measured = {item.number: item for item in tuning.measured}
    named = [item for item in tuning.judged if item.name or item.number == tuning.chosen]
    low, high = axes.get_ylim()
    taken: list[float] = []
    for item in sorted(named, key=lambda item: heights[item.number]):
        found = measured.get(item.number)
        seconds = _seconds(item) if found is None else found.seconds
        height = heights[item.number]
        share = _share(axes, height, low, high)
        place = share
        while any(abs(place - other) < LABEL_GAP for other in taken):
            place += LABEL_GAP / 4
        taken.append(place)
        chosen = item.number == tuning.chosen
        axes.annotate(
            _text(item, found, chosen),
            (seconds, height),
            xytext=(1.015, place),
            textcoords="axes fraction",
            fontsize="small",
            fontweight="bold" if chosen else "normal",
            color=GREEN if chosen else "#333333",
            va="center",
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.6, "shrinkB": 6},
            annotation_clip=False,
        )


def _seconds(item: Attempt) -> float:
    return math.nan if item.predicted_seconds is None else item.predicted_seconds


def _share(axes: Axes, height: float, low: float, high: float) -> float:
    if axes.get_yscale() == "log":
        height, low, high = math.log(height), math.log(low), math.log(high)
    return (height - low) / (high - low)


def _text(item: Attempt, found: Measurement | None, chosen: bool) -> str:
    name = f"recipe found ({item.label})" if chosen else item.label
    return name if found is None else f"{name}, {found.speedup.value:.2f}x"


def _heights(tuning: Tuning) -> dict[int, float]:
    """Number of an attempt → its quality, where an axis can show it."""
    values = {item.number: item.quality.get(tuning.metric) for item in tuning.judged}
    shown = [value for value in values.values() if value is not None and math.isfinite(value)]
    if tuning.metric == "psnr":
        edge = max([*shown, tuning.limits["psnr"]]) + 3
        return {
            number: value if value is not None and math.isfinite(value) else edge
            for number, value in values.items()
        }
    least = min([value for value in shown if value > 0], default=1e-9) / 2
    if tuning.metric == "relative_error":
        return {number: max(value or 0.0, least) for number, value in values.items()}
    return {number: value or 0.0 for number, value in values.items()}

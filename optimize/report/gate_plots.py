"""The pictures of a gate's history."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure

from optimize.report.plots import COLOURS, figure_file

OUTCOME_COLOURS = {"pass": "#009E73", "fail": "#D55E00", "inconclusive": "#E69F00"}
MOST_LABELS = 20


@dataclass(frozen=True)
class Series:
    """A line of a trend: values, and intervals where there are any; None where nothing is known."""

    name: str
    values: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]

    @property
    def known(self) -> bool:
        return any(value is not None for value in self.values)


def trend(
    labels: Sequence[str],
    lines: Sequence[Series],
    outcomes: Sequence[str],
    middle: float | None,
) -> bytes:
    """Lines over receipts, as SVG; receipts that did not pass have a coloured ground.

    Args:
        labels: one per receipt.
        lines: one value per receipt each.
        outcomes: "pass", "fail" or "inconclusive", one per receipt.
        middle: value of a line that means "no change"; None draws none.
    """
    with matplotlib.rc_context({"svg.hashsalt": "optimize", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9.5, 3.4), layout="constrained")
        axes = figure.subplots()
        for place, outcome in enumerate(outcomes):
            if outcome != "pass":
                axes.axvspan(
                    place - 0.5, place + 0.5, color=OUTCOME_COLOURS[outcome], alpha=0.15, lw=0
                )
        if middle is not None:
            axes.axhline(middle, color="#888888", linewidth=0.8, linestyle="--")
        for colour, line in zip(COLOURS, lines, strict=False):
            places = [i for i, value in enumerate(line.values) if value is not None]
            values = [value for value in line.values if value is not None]
            axes.plot(places, values, marker=".", color=colour, label=line.name)
            spans = [
                (i, low, high)
                for i, (low, high) in enumerate(zip(line.low, line.high, strict=True))
                if low is not None and high is not None
            ]
            if spans:
                at, lows, highs = zip(*spans, strict=True)
                axes.vlines(at, lows, highs, color=colour, alpha=0.5)
        every = max(1, -(-len(labels) // MOST_LABELS))
        axes.set_xticks(range(0, len(labels), every), labels[::every], rotation=45, ha="right")
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure_file(figure, "svg")

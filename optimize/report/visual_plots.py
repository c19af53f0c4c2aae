"""Pictures of what a pruned prompt kept of its image."""

import io

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from optimize.report.images import Picture
from optimize.report.visual_tokens import StageTokens, VisualTokens

SIDE = 380
"""Pixels that the longer side of a picture has, about."""

DARKENED = 0.22
KEPT, MARKED = (86, 180, 233), (230, 159, 0)
"""Frames of tokens that scores and that the grid kept: Okabe and Ito's sky blue and orange."""

KEPT_BAR, MARKED_BAR = "#56B4E9", "#E69F00"


def kept_picture(figures: VisualTokens, stage: StageTokens) -> Picture | None:
    """The image with dropped tokens dark and a frame around those kept; None without an image.

    Returns:
        [rows x cell, columns x cell, 3], each token a square of as many pixels.
    """
    pixels, grid = figures.pixels, figures.grid
    if pixels is None or grid is None:
        return None
    rows, columns = grid
    cell = max(4, SIDE // max(rows, columns))
    height, width = rows * cell, columns * cell
    # A pixel is drawn where its centre lies in the image, whatever the sizes.
    down = (np.arange(height) * 2 + 1) * pixels.shape[0] // (2 * height)
    across = (np.arange(width) * 2 + 1) * pixels.shape[1] // (2 * width)
    canvas = pixels[down][:, across].astype(np.float64)
    kept = np.zeros(rows * columns, dtype=bool)
    kept[list(stage.kept)] = True
    lit = kept.reshape(rows, columns).repeat(cell, 0).repeat(cell, 1)
    canvas[~lit] *= DARKENED
    picture: Picture = np.rint(canvas).astype(np.uint8)
    marked = set(stage.marked)
    for number in stage.kept:
        top, left = number // columns * cell, number % columns * cell
        _frame(picture[top : top + cell, left : left + cell], MARKED if number in marked else KEPT)
    return picture


def _frame(token: NDArray[np.uint8], colour: tuple[int, int, int]) -> None:
    """Draws a frame just inside a square of pixels."""
    thick = 1 + (len(token) >= 16) + (len(token) >= 32)
    inside = token[thick:-thick, thick:-thick].copy()
    token[:] = colour
    token[thick:-thick, thick:-thick] = inside


def row_histograms(figures: VisualTokens) -> bytes:
    """An SVG file of `row_histogram_figure`, whose bytes depend on nothing but the data."""
    with matplotlib.rc_context({"svg.hashsalt": "optimize", "svg.fonttype": "none"}):
        buffer = io.BytesIO()
        metadata = {"Date": None, "Creator": "optimize"}
        row_histogram_figure(figures).savefig(buffer, format="svg", metadata=metadata)
        return buffer.getvalue()


def row_histogram_figure(figures: VisualTokens) -> Figure:
    """A panel per stage: the share of the kept tokens in each row of the image, top to bottom."""
    # The name of the vertical axis needs some length, however few the rows.
    height = min(6.0, max(3.0, 1.7 + 0.16 * figures.bins))
    figure = Figure(figsize=(4.4 * len(figures.stages) + 0.4, height), layout="constrained")
    panels = figure.subplots(1, len(figures.stages), squeeze=False, sharey=True)[0]
    for axes, stage in zip(panels, figures.stages, strict=True):
        _histogram(axes, figures, stage)
    name = "row of the image" if figures.grid is not None else "piece of the image's tokens"
    panels[0].set_ylabel(f"{name}, top to bottom", fontsize="small")
    shown = _legend(panels)
    figure.legend(
        shown.values(),
        shown.keys(),
        loc="outside lower center",
        ncols=4,
        fontsize="small",
        frameon=False,
    )
    return figure


def _histogram(axes: Axes, figures: VisualTokens, stage: StageTokens) -> None:
    count, bins = len(stage.kept), np.arange(figures.bins)
    marked = figures.row_shares(stage.marked, count)
    scored = figures.row_shares(stage.kept, count) - marked
    axes.barh(bins, 100 * scored, color=KEPT_BAR, label="kept by score")
    if stage.marked:
        left = 100 * scored
        axes.barh(bins, 100 * marked, left=left, color=MARKED_BAR, label="kept by the grid")
    axes.axvline(100 / figures.bins, color="#666666", linestyle=":", linewidth=1.2, label="even")
    # Position 0 is the upper edge of the first bar, 1 the lower edge of the last.
    mean = stage.mean_position * figures.bins - 0.5
    axes.axhline(mean, color="#D55E00", linewidth=1.8, label="mean position")
    axes.set_ylim(figures.bins - 0.5, -0.5)
    axes.set_xlim(left=0)
    step = max(1, figures.bins // 8)
    axes.set_yticks(bins[::step], [str(number + 1) for number in bins[::step]])
    axes.xaxis.set_major_formatter("{x:g} %")
    axes.set_xlabel("share of the kept tokens", fontsize="small")
    axes.tick_params(labelsize="small")
    title = f"from layer {stage.layer} on: mean position {stage.mean_position:.2f}"
    axes.set_title(title, fontsize="medium", loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend(panels: NDArray[np.object_]) -> dict[str, Artist]:
    """What any of the panels shows, each once, under its label."""
    found: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return found

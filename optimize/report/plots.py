"""Plots for reports, as files whose bytes depend on nothing but the data."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from optimize.ir.report import Curve, Row
from optimize.measure.solver_comparison import METRIC_NAMES, SolverComparison, SolverLine
from optimize.report.frame_tiles import FrameTiles, LayerTiles

MARKS = {"baseline": "s", "ours": "*", "control": "x", "part": "."}

COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#888888",
)  # fmt: skip
"""Okabe and Ito's, told apart by the colour-blind; grey for yellow, which is faint on white."""

SOLVER_MARKS = "osD^vPX*"
STROKES = {1: ":", 2: "-", 3: "--"}
MIXED_STROKE = "-."

HEAT = "Blues"
LEFT_OUT: Mapping[str, Any] = {
    "hatch": "//////",
    "edgecolor": "#D55E00",
    "facecolor": "none",
    "linewidth": 0,
}
"""Strokes of a colour told from every blue, by the colour-blind too."""

NAME_LENGTH = 26
"""Characters of a layer's name that fit above its map."""


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
        return figure_file(figure, "svg")


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
        return figure_file(figure, kind)


def frame_tile_maps(tiles: FrameTiles, kind: Literal["svg", "png"]) -> bytes:
    """The attention between frames, a map per layer, the tiles that are left out hatched.

    All maps have one scale of colours, with the square root of the share, so that the weak tiles
    off the diagonal can be told apart. A layer without a map shows its hatching only.
    """
    with matplotlib.rc_context(
        {
            "svg.hashsalt": "optimize",
            "svg.fonttype": "none",
            "text.parse_math": False,
            "hatch.linewidth": 0.6,
        }
    ):
        return figure_file(frame_tile_figure(tiles), kind)


def frame_tile_figure(tiles: FrameTiles) -> Figure:
    """The figure of `frame_tile_maps`, not drawn yet."""
    count = len(tiles.layers)
    columns = count if count < 4 else 4 if count <= 8 else 6
    rows = -(-count // columns)
    size = min(2.2, 9.6 / columns)
    figure = Figure(figsize=(size * columns + 1.4, (size + 0.3) * rows + 0.7), layout="constrained")
    shares = [share for layer in tiles.layers for row in layer.map or () for share in row]
    norm = PowerNorm(0.5, vmin=0, vmax=max(shares, default=1.0))
    grid = figure.subplots(rows, columns, squeeze=False)
    for index, axes in enumerate(grid.flat):
        if index >= count:
            axes.axis("off")
            continue
        _tile_map(axes, tiles, tiles.layers[index], norm)
        axes.tick_params(labelleft=index % columns == 0, labelbottom=index + columns >= count)
    if shares:
        drawn = matplotlib.cm.ScalarMappable(norm, HEAT)
        bar = figure.colorbar(drawn, ax=grid, shrink=min(1, 1.6 / rows + 0.2), aspect=25)
        bar.set_label("share of a frame's attention", fontsize="small")
        bar.ax.tick_params(labelsize="small")
    figure.supxlabel("frame that is attended to", fontsize="small")
    figure.supylabel("frame that attends", fontsize="small")
    mark = Patch(label="left out", **LEFT_OUT)
    figure.legend(handles=[mark], loc="outside upper left", fontsize="small", frameon=False)
    return figure


def _tile_map(axes: Axes, tiles: FrameTiles, layer: LayerTiles, norm: PowerNorm) -> None:
    frames = tiles.frames
    if layer.map is not None:
        axes.imshow(np.asarray(layer.map), cmap=HEAT, norm=norm, interpolation="nearest")
    axes.add_patch(PathPatch(_rectangles(tiles.left_out(layer)), **LEFT_OUT))
    axes.set_xlim(-0.5, frames - 0.5)
    axes.set_ylim(frames - 0.5, -0.5)
    axes.set_aspect("equal")
    ticks = range(0, frames, max(1, frames // 4))
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.tick_params(labelsize="x-small", length=2)
    count = len(layer.references)
    references = f"{count} reference{'s' if count > 1 else ''}" if count < frames else "dense"
    error = "" if layer.error is None else f", error {layer.error:.2g}"
    axes.set_title(f"{_short(layer.site)}\n{references}{error}", fontsize="x-small", pad=3)


def _rectangles(chosen: NDArray[np.bool_]) -> Path:
    """The chosen tiles of [F, F]: for each row of tiles, rectangles over neighbours."""
    rectangles = [Path(np.empty((0, 2)))]
    for row, tiles in enumerate(chosen):
        # Where a run of chosen tiles starts, and where the first tile after it stands.
        edges = np.flatnonzero(np.diff(tiles, prepend=False, append=False)) - 0.5
        for left, right in edges.reshape(-1, 2):
            corners = [(left, row - 0.5), (right, row - 0.5), (right, row + 0.5), (left, row + 0.5)]
            rectangles.append(Path([*corners, corners[0]], closed=True))
    return Path.make_compound_path(*rectangles)


def _short(name: str) -> str:
    """The name, or its end, which tells layers apart."""
    return name if len(name) <= NAME_LENGTH else "…" + name[1 - NAME_LENGTH :]


def _points(line: SolverLine) -> list[tuple[int, float]]:
    """(calls, distance) of a line, where a logarithmic axis can show it."""
    values = [(calls, score.value("distance")) for calls, score in line.scores.items()]
    return [(calls, value) for calls, value in values if value]


def figure_file(figure: Figure, kind: Literal["svg", "png"]) -> bytes:
    """The bytes of a figure, which depend on nothing but its data."""
    metadata = {"Date": None, "Creator": "optimize"} if kind == "svg" else {"Software": "optimize"}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata, dpi=150)
    return buffer.getvalue()

"""A report as one self-contained page: no script, no request leaves it."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from optimize.ir.record import Record
from optimize.ir.report import (
    Report,
    amount,
    calls_text,
    plain,
    process_cells,
    row_cells,
    seconds_text,
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
from optimize.report.frame_tiles import HEAD, frame_tiles
from optimize.report.images import Picture, data_uri, png, token_map
from optimize.report.plots import calls_versus_quality, frame_tile_maps
from optimize.report.visual_plots import kept_picture, row_histograms
from optimize.report.visual_tokens import (
    CACHE_HEAD,
    WORK_HEAD,
    VisualTokens,
    pruning_note,
    visual_tokens,
)


@dataclass(frozen=True)
class Samples:
    """A grid of samples with its caption; `scale` is pixels per value."""

    caption: str
    picture: Picture
    scale: int = 2


def render_html(report: Report, samples: Sequence[Samples] = (), title: str = "Report") -> str:
    """The page of a report.

    Args:
        report: its passes may carry `details["active"]`, [step][h][w] booleans,
            `tile_attention` `details["tiles"]`, `prune_visual_tokens` `details["visual_tokens"]`.
        samples: pictures to show, such as before and after.
        title: heading of the page.
    """
    metrics = list(dict.fromkeys(name for row in report.rows for name in row.quality))
    return render_page(
        "page.html.j2",
        title,
        report=report,
        samples=[
            {"caption": item.caption, "uri": data_uri(png(item.picture, item.scale))}
            for item in samples
        ],
        metrics=metrics,
        rows=[{"role": row.role, "cells": row_cells(row, metrics)} for row in report.rows],
        curve=_curve(report),
        processes=[cells for record in report.passes if (cells := process_cells(record))],
        maps=[item for record in report.passes if (item := _maps(record)) is not None],
        tiles=_tiles(report),
        tokens=_tokens(report),
        pruning_note=pruning_note(report),
        options={record.name: plain(record.options) for record in report.passes},
        calls={record.name: calls_text(record) for record in report.passes},
        node_count=_node_count,
        costs={"head": COST_HEAD, "rows": cost_cells(report)},
        kernels={"head": KERNEL_HEAD, "rows": kernel_cells(report)},
        quality={"head": QUALITY_HEAD, "rows": quality_cells(report)},
        receipt=receipt_cells(report),
    )


def _node_count(target: Mapping[str, Any]) -> str:
    """How many nodes the graphs of a target have; empty where it has no ONNX graphs."""
    graphs = target.get("nodes")
    return "" if graphs is None else str(sum(sum(ops.values()) for ops in graphs.values()))


def render_page(template: str, title: str, **values: Any) -> str:
    """A page of ours: its template with the style sheet inside, and a policy that loads nothing.

    Args:
        template: file name in this folder; what it shows is escaped.
        title: of the page.
        values: what the template shows.
    """
    style = _resource("style.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"amount": amount, "seconds": seconds_text}
    return environment.from_string(_resource(template)).render(
        title=title,
        style=style,
        policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'",
        **values,
    )


def _resource(name: str) -> str:
    return resources.files("optimize.report").joinpath(name).read_text("utf-8")


def _curve(report: Report) -> str | None:
    if not report.curves:
        return None
    plot = calls_versus_quality(report.curves, report.rows, report.curve_metric)
    return data_uri(plot, "image/svg+xml")


def _maps(record: Record) -> dict[str, Any] | None:
    active = record.details.get("active")
    if not active:
        return None
    steps = []
    for index, step in enumerate(active):
        picture = token_map(step)
        share = float((picture < 128).mean())
        scale = max(1, 64 // max(picture.shape))
        caption = f"step {index + 1}: {share:.0%}"
        steps.append({"caption": caption, "uri": data_uri(png(picture, scale))})
    return {"name": record.name, "steps": steps}


def _tiles(report: Report) -> dict[str, Any] | None:
    tiles = frame_tiles(report)
    if tiles is None:
        return None
    picture = data_uri(frame_tile_maps(tiles, "svg"), "image/svg+xml")
    return {
        "uri": picture,
        "head": HEAD,
        "rows": tiles.rows(named=True),
        "summary": tiles.summary(),
    }


def _tokens(report: Report) -> dict[str, Any] | None:
    figures = visual_tokens(report)
    if figures is None:
        return None
    return {
        "figures": figures,
        "stages": _stages(figures),
        "histograms": data_uri(row_histograms(figures), "image/svg+xml"),
        "tables": [
            {"head": WORK_HEAD, "rows": [item.cells() for item in figures.work]},
            {"head": CACHE_HEAD, "rows": [item.cells() for item in figures.cache]},
        ],
    }


def _stages(figures: VisualTokens) -> list[dict[str, Any]]:
    stages = []
    for stage in figures.stages:
        picture = kept_picture(figures, stage)
        uri = None if picture is None else data_uri(png(picture))
        stages.append({"caption": figures.caption(stage), "uri": uri})
    return stages

"""What `tile_attention` chose, as a table, as sentences and as pictures."""

import io
import itertools
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from optimize.ir.record import Record
from optimize.ir.report import Report
from optimize.kernels.tile_attention.pattern import spread_references, tile_density
from optimize.report.frame_tiles import frame_tiles
from optimize.report.html import render_html
from optimize.report.plots import frame_tile_figure, frame_tile_maps
from optimize.report.terminal import print_report

SITE = "denoiser.scaled_dot_product_attention_{}"


def layer(index: int, frames: int, count: int, **changes: Any) -> dict[str, Any]:
    """A layer with most attention on the diagonal and some to the first frame."""
    distance = np.abs(np.subtract.outer(range(frames), range(frames)))
    share = np.exp(-distance) + 2 * np.eye(frames) + (np.arange(frames) == 0)
    return {
        "site": SITE.format(index),
        "references": list(spread_references(frames, count)),
        "density": tile_density(frames, count) if count < frames else 1.0,
        "error": 0.00123 * (index + 1),
        "map": (0.9 * share / share.sum(1, keepdims=True)).tolist(),
        "text_share": 0.1,
        **changes,
    }


def report(layers: list[dict[str, Any]], frames: int = 8, **changes: Any) -> Report:
    tiles = {
        "frames": frames,
        "tokens_per_frame": 3600,
        "budget": 0.02,
        "joint_error": 0.0173,
        "attention_share": 0.672,
        "predicted_speedup": 1.449,
        "measured_speedup": 1.41,
        "layers": layers,
        **changes,
    }
    # What is kept with a bundle is JSON.
    details = {"tiles": json.loads(json.dumps(tiles))}
    sites = tuple(item["site"] for item in layers)
    return Report(passes=(Record("tile_attention", sites=sites, details=details),))


def printed(shown: Report) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_report(shown, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_table_and_sentences_say_what_was_chosen() -> None:
    tiles = frame_tiles(report([layer(0, 8, 2), layer(1, 8, 8)]))
    assert tiles is not None
    assert tiles.rows(named=True) == [
        [SITE.format(0), "2 of 8: 0 4", "53.1%", "0.00123"],
        [SITE.format(1), "8 of 8", "100.0%", "0.00246"],
    ]
    assert [row[1] for row in tiles.rows(named=False)] == ["2 of 8", "8 of 8"]
    assert tiles.summary() == [
        "Error with all layers in tiles 0.0173, budget 0.02.",
        "Speed-up predicted by Amdahl's law 1.45x, attention taking 67% of the time; "
        "measured 1.41x.",
    ]


def test_what_was_not_measured_is_said() -> None:
    nothing = {"attention_share": None, "predicted_speedup": None, "measured_speedup": None}
    shown = report([layer(0, 8, 1, error=None, map=None, text_share=None)], **nothing)
    tiles = frame_tiles(shown)
    assert tiles is not None and tiles.rows(named=True)[0][3] == ""
    expected = "Speed-up predicted by Amdahl's law not measured; measured not measured."
    assert tiles.summary()[1] == expected
    assert frame_tile_maps(tiles, "png").startswith(b"\x89PNG")
    assert "Frame tiles" in printed(shown)


def test_reports_without_the_pass_have_no_tiles() -> None:
    declined = Report(passes=(Record("tile_attention", declined="no frames"), Record("other")))
    assert frame_tiles(declined) is None
    assert "Frames that attend" not in render_html(declined)
    assert "Frame tiles" not in printed(declined)


def test_terminal_keeps_the_end_of_names_in_80_columns() -> None:
    text = printed(report([layer(index, 24, 12) for index in (8, 9)], frames=24))
    assert SITE.format(8) in text and SITE.format(9) in text
    assert "12 of 24" in text and "77.1%" in text and "measured 1.41x" in text


def test_page_has_picture_table_and_speedups() -> None:
    shown = report([layer(0, 8, 2), layer(1, 8, 4, site="<script>alert(1)</script>$x_1$")])
    page = render_html(shown)
    section = page[page.index("Frames that attend to one another") :]
    for expected in ("2 of 8: 0 4", "53.1%", "Amdahl&#39;s law 1.45x", "measured 1.41x"):
        assert expected in section
    assert "data:image/svg+xml;base64," in section and "<script" not in page
    assert render_html(shown) == page


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_left_out_tiles_are_those_that_are_not_computed(count: int) -> None:
    tiles = frame_tiles(report([layer(0, 8, count)]))
    assert tiles is not None
    left_out = tiles.left_out(tiles.layers[0])
    assert left_out.mean() == 1 - tiles.layers[0].density
    assert (left_out == left_out.T).all() and not left_out.diagonal().any()
    (hatched,) = frame_tile_figure(tiles).axes[0].patches
    centres = [(column, row) for row in range(8) for column in range(8)]
    inside = hatched.get_path().contains_points(centres) if left_out.any() else np.zeros(64, bool)
    assert (inside.reshape(8, 8) == left_out).all()


@pytest.mark.parametrize("frames", [8, 24])
@pytest.mark.parametrize("layers", [1, 4, 8, 30])
def test_nothing_overlaps_in_the_picture(frames: int, layers: int) -> None:
    counts = itertools.cycle([1, frames // 2, frames])
    made = [layer(index, frames, next(counts)) for index in range(layers)]
    tiles = frame_tiles(report(made, frames))
    assert tiles is not None
    figure = frame_tile_figure(tiles)
    figure.draw_without_rendering()
    maps = [axes for axes in figure.axes if axes.get_title()]
    assert len(maps) == layers
    boxes = [axes.title.get_window_extent() for axes in maps]
    boxes += [axes.get_window_extent() for axes in maps]
    assert all(not a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(
        figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        for box in boxes
    )


def test_pictures_depend_on_nothing_but_the_data() -> None:
    tiles = frame_tiles(report([layer(0, 8, 2), layer(1, 8, 8, map=None)]))
    assert tiles is not None
    picture = frame_tile_maps(tiles, "svg")
    assert frame_tile_maps(tiles, "svg") == picture
    assert b"2 references, error 0.0012" in picture and b"dense, error 0.0025" in picture


def test_references_that_were_given_have_no_figures_and_are_still_shown() -> None:
    """What the pass itself writes without a search."""
    from optimize.passes.pipeline import run_passes
    from optimize.passes.tile_attention import TileAttention
    from optimize.report.html import render_html
    from tests.passes.tiny_video import tiny_video

    after = run_passes(tiny_video(), [TileAttention(references=2)], verify=False)
    tiles = frame_tiles(after.report)
    assert tiles is not None
    assert tiles.summary() == ["References as given: no search, nothing measured layer by layer."]
    assert "2 of 6: 0 3" in render_html(after.report)

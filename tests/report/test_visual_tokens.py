"""What a pruned prompt kept, as pictures, bars, tables and sentences."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from optimize.ir.record import Record
from optimize.ir.report import Report
from optimize.report.html import render_html
from optimize.report.json_file import render_json
from optimize.report.terminal import print_report
from optimize.report.visual_plots import KEPT, MARKED, kept_picture, row_histogram_figure
from optimize.report.visual_tokens import VisualTokens, visual_tokens
from optimize.runtime.image import png_bytes

GRID = (6, 9)
NOTE = "the decoder has no rotary positions"


def figures_data(**changes: Any) -> dict[str, Any]:
    """Two stages over an image of 6 x 9 tokens, its colours a ramp."""
    ramp = np.linspace(60, 255, 60 * 90 * 3).reshape(60, 90, 3).astype(np.uint8)
    stages = [
        {"layer": 4, "kept": [0, 3, 6, 8, 27, 30, 33, 50], "marked": [0, 3, 6, 27, 30, 33],
         "mean_position": 0.37},
        {"layer": 8, "kept": [8, 50], "marked": [], "mean_position": 0.547},
    ]  # fmt: skip
    return {
        "criterion": "feather",
        "image_tokens": 54,
        "text_tokens": 12,
        "grid": list(GRID),
        "picture": base64.b64encode(png_bytes(ramp)).decode(),
        "stages": stages,
        "widths": {"width": 64, "perceptron": 172, "gated": True},
        "work": [
            {"name": "visual tokens only", "unit": "MAC", "before": 1000.0, "after": 359.0},
            {"name": "counted", "unit": "FLOP", "before": 4e12, "after": 1e12},
        ],
        "cache": [{"name": "space", "unit": "B", "before": 96256, "after": 54528}],
        **changes,
    }


def report(note: str | None = None, **changes: Any) -> Report:
    details = {"visual_tokens": figures_data(**changes)}
    extra = {} if note is None else {"note": note}
    return Report(passes=(Record("prune_visual_tokens", sites=("a",), details=details | extra),))


def figures(**changes: Any) -> VisualTokens:
    found = visual_tokens(report(**changes))
    assert found is not None
    return found


def printed(shown: Report, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_report(shown, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_captions_have_layer_counts_and_per_cent() -> None:
    shown = figures()
    assert [shown.caption(stage) for stage in shown.stages] == [
        "from layer 4 on: 8 of 54 kept (14.8%), 6 of them by the grid",
        "from layer 8 on: 2 of 54 kept (3.7%)",
    ]


def test_picture_keeps_kept_tokens_and_darkens_the_others() -> None:
    shown = figures()
    first, second = (kept_picture(shown, stage) for stage in shown.stages)
    assert first is not None and second is not None and shown.pixels is not None
    cell = first.shape[0] // GRID[0]
    assert first.shape == (GRID[0] * cell, GRID[1] * cell, 3)
    for picture, stage in ((first, shown.stages[0]), (second, shown.stages[1])):
        tokens = picture.reshape(GRID[0], cell, GRID[1], cell, 3).swapaxes(1, 2)
        for number, token in enumerate(tokens.reshape(-1, cell, cell, 3)):
            row, column = divmod(number, GRID[1])
            centre = shown.pixels[row * 10 + 5, column * 10 + 5].astype(float)
            ratio = token[cell // 2, cell // 2] / centre
            corner = tuple(token[0, 0].tolist())
            if number in stage.kept:
                assert ratio == pytest.approx(np.ones(3), abs=0.1)
                assert corner == (MARKED if number in stage.marked else KEPT)
            else:
                assert (ratio < 0.3).all() and corner not in (MARKED, KEPT)


def test_bars_are_shares_of_the_kept_tokens() -> None:
    shown = figures()
    first = shown.stages[0]
    assert shown.row_shares(first.kept, 8).tolist() == [0.5, 0, 0, 0.375, 0, 0.125]
    figure = row_histogram_figure(shown)
    panel = figure.axes[0]
    ends = {}
    for bar in panel.patches:
        row = round(bar.get_y() + bar.get_height() / 2)  # type: ignore[attr-defined]
        ends[row] = max(ends.get(row, 0), bar.get_x() + bar.get_width())  # type: ignore[attr-defined]
    assert list(ends.values()) == pytest.approx([50, 0, 0, 37.5, 0, 12.5])
    # The top row of the image is the top bar.
    assert panel.yaxis_inverted()
    assert "mean position 0.37" in panel.get_title("left")


@pytest.mark.parametrize(("grid", "tokens"), [((27, 27), 729), ((4, 4), 16), ((2, 300), 600)])
def test_nothing_leaves_the_histograms(grid: tuple[int, int], tokens: int) -> None:
    stages = [
        {"layer": layer, "kept": list(range(0, tokens, 3)), "marked": [], "mean_position": 0.5}
        for layer in (8, 16)
    ]
    shown = figures(grid=list(grid), image_tokens=tokens, stages=stages)
    figure = row_histogram_figure(shown)
    figure.draw_without_rendering()
    left, right = (axes.get_tightbbox() for axes in figure.axes)
    assert left is not None and right is not None and left.x1 <= right.x0
    for box in (left, right, figure.legends[0].get_window_extent()):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 - 1 <= box.y0 and box.y1 <= figure.bbox.y1 + 1


def test_page_has_pictures_tables_and_the_note() -> None:
    page = render_html(report(NOTE))
    section = page[page.index("Image tokens that are left") :]
    assert section.count("data:image/png;base64,") == 2
    assert section.count("data:image/svg+xml;base64,") == 1
    for expected in (
        "14.8%",
        "64.1%",
        "75.0%",
        "43.4%",
        "3 n d m (gated",
        "d = 64",
        "0.5 is no bias",
    ):
        assert expected in section
    assert f"Note on pruning: {NOTE}." in section
    assert render_html(report(NOTE)) == page and "<script" not in page


def test_terminal_has_maps_bars_tables_and_the_note() -> None:
    text = printed(report(NOTE))
    lines = [line.rstrip() for line in text.splitlines()]
    assert "  ▒ · · ▒ · · ▒ · █   50% ━━━━━━━━━━━━━━━━━━━━" in lines
    assert "  · · · · · █ · · ·   50% ━━━━━━━━━━━━━━━━━━━━" in lines
    for expected in ("mean position 0.37", "14.8%", "64.1%", "43.4%", f"note on pruning: {NOTE}"):
        assert expected in text
    assert max(map(len, lines)) <= 80


def test_terminal_leaves_maps_out_that_do_not_fit() -> None:
    stages = [{"layer": 4, "kept": [0, 599], "marked": [], "mean_position": 0.5}]
    text = printed(report(grid=[2, 300], image_tokens=600, stages=stages))
    assert "   50% ━━━━━━━━━━━━━━━━━━━━" in text and "· ·" not in text


def test_image_without_a_grid_has_bars_of_its_sequence() -> None:
    shown = figures(grid=None)
    assert kept_picture(shown, shown.stages[0]) is None
    assert sum(shown.row_shares(shown.stages[0].kept, 8)) == 1
    page = render_html(report(grid=None))
    assert "come from no grid" in page and "data:image/png" not in page
    assert "data:image/svg+xml" in page and "mean position 0.37" in printed(report(grid=None))


def test_formula_is_said_to_be_missing_without_widths() -> None:
    assert "The formula C(n) is left out" in figures(widths=None).about_work()
    assert "2 n d m" in figures(widths={"width": 8, "perceptron": 9, "gated": False}).about_work()


def test_reports_without_figures_show_none() -> None:
    unverified = Report(passes=(Record("prune_visual_tokens", sites=("a",)), Record("other")))
    assert visual_tokens(unverified) is None
    assert "Image tokens" not in render_html(unverified) + printed(unverified)
    noted = Report(passes=(Record("prune_visual_tokens", details={"note": NOTE}),))
    assert NOTE in render_html(noted) and NOTE in printed(noted)


def test_json_has_the_same_figures() -> None:
    kept = json.loads(render_json(report()))["passes"][0]["details"]["visual_tokens"]
    assert figures(**kept) == figures()

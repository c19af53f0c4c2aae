"""Reports as data, text, terminal tables and a page that runs nothing."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from optimize.ir.program import Program
from optimize.ir.record import Record
from optimize.ir.report import Curve, Report, Row, amount, plain, seconds_text
from optimize.report.facts import cost_cells, kernel_cells, quality_cells
from optimize.report.html import Samples, render_html
from optimize.report.images import grid, png, to_picture, token_map
from optimize.report.json_file import render_json
from optimize.report.terminal import print_report

HOSTILE = "<script>alert('x')</script>\"'&[red]{{ 7 * 7 }}"

REPORT = Report(
    passes=(
        Record(
            "cache_regions",
            options={"keep_ratio": 0.5, "keep": ((0, 0.5),)},
            sites=("block_0", "block_1"),
            flops_before=2e9,
            flops_after=1.2e9,
            error=0.0123,
            seconds=0.5,
            oracles={"identity": 0.0, "worst": float("nan")},
            details={"active": [[[True, False], [False, True], [True, True]]] * 3},
        ),
        Record("fuse_solver", declined="the loop is fused", flops_before=1.0, flops_after=1.0),
    ),
    notes=("the model fixes the batch at 2",),
    rows=(
        Row("Euler, 50 steps", "baseline", 50, 0.5, {"distance": 0.02, "judge": 0.99}),
        Row("image-fast", "ours", 10, 0.05, {"distance": 0.03, "judge": 0.99}),
        Row("Euler, 10 steps", "control", 10, 0.11, {"distance": 0.2}),
        Row("solver alone", "part", 10, 0.1, {"distance": 0.025}),
    ),
    curves=(Curve("Euler", ((2, 1.0), (10, 0.2), (50, 0.02))),),
    curve_metric="distance",
    environment={"cpu": "two cores"},
)


def test_dict_has_the_fixed_keys() -> None:
    data = json.loads(render_json(REPORT))
    assert data["speedup"] == pytest.approx(10.0)
    assert data["quality"]["ours"] == {"distance": 0.03, "judge": 0.99}
    assert [row["name"] for row in data["controls"]] == ["Euler, 10 steps"]
    first, second = data["passes"]
    assert {"name", "sites", "declined", "flops_before", "flops_after", "error", "seconds"} <= set(
        first
    )
    assert first["declined"] is None and second["declined"] == "the loop is fused"
    assert first["oracles"] == {"identity": 0.0, "worst": None}


def test_dict_of_a_program_without_measurements(toy_program: Program) -> None:
    data = toy_program.report.to_dict()
    assert data["speedup"] is None and data["passes"] == [] and data["controls"] == []
    assert str(toy_program.report) == "no passes"


def test_fewer_calls_are_shown_where_a_pass_says_how_many() -> None:
    record = Record(
        "commit_early",
        sites=("step",),
        flops_before=1e9,
        flops_after=1e9,
        error=0.02,
        seconds=0.1,
        details={"calls_before": 24.0, "calls": 3.261},
    )
    report = Report((record,))
    line = "commit_early: 1 site, 1 GFLOP → 1 GFLOP, 24 → 3.26 calls, error 0.02, 100 ms"
    assert str(report) == line
    console = Console(file=io.StringIO(), width=100)
    print_report(report, console=console)
    assert "24 → 3.26 calls" in console.file.getvalue()
    assert "24 → 3.26 calls" in render_html(report)


def test_text_has_a_line_per_pass_and_row() -> None:
    lines = str(REPORT).splitlines()
    assert lines[0] == "cache_regions: 2 sites, 2 GFLOP → 1.2 GFLOP, error 0.0123, 500 ms"
    assert lines[1] == "fuse_solver: declined, the loop is fused"
    assert lines[3] == "                 calls  time    distance  judge"
    assert lines[5] == "image-fast       10     50 ms   0.03      0.99"
    assert lines[-2] == "10.00x less time per sample than the baseline"
    assert lines[-1] == "note: the model fixes the batch at 2"


def printed(report: Report) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_report(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_terminal_shows_passes_rows_and_reasons() -> None:
    text = printed(REPORT)
    for expected in ("cache_regions", "1.2 G", "image-fast", "fuse_solver declined: the loop is"):
        assert expected in text


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(report: Report) -> tuple[str, Tags]:
    picture = to_picture(np.linspace(-1, 1, 12).reshape(3, 4), -1, 1)
    page = render_html(report, [Samples(HOSTILE, picture)], title=HOSTILE)
    tags = Tags()
    tags.feed(page)
    return page, tags


def test_page_escapes_hostile_strings() -> None:
    hostile = Report(
        passes=(Record(HOSTILE, {HOSTILE: HOSTILE}, (HOSTILE,), HOSTILE, oracles={HOSTILE: 1.0}),),
        notes=(HOSTILE,),
        rows=(Row(HOSTILE, "ours", 1, 1.0, {HOSTILE: 1.0}),),
        curves=(Curve(HOSTILE, ((1, 1.0),)),),
        curve_metric=HOSTILE,
        environment={HOSTILE: HOSTILE},
    )
    page, tags = page_of(hostile)
    assert "<script" not in page
    assert not any(tag == "script" for tag, _ in tags.tags)
    assert "".join(tags.text).count(HOSTILE) >= 8
    assert HOSTILE in printed(hostile).replace("\n", "")


def test_page_loads_nothing() -> None:
    page, tags = page_of(REPORT)
    for tag, attributes in tags.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("href", "style")
            if name == "src":
                assert value is not None and value.startswith("data:image/")
    policy = next(a["content"] for t, a in tags.tags if t == "meta" and "content" in a)
    style = re.search(r"<style>(.*)</style>", page, re.DOTALL)
    assert style is not None and policy is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'"


def test_page_shows_maps_curve_and_rows() -> None:
    page, tags = page_of(REPORT)
    text = "".join(tags.text)
    assert "step 3: 67%" in text
    assert "10.00x less time" in text
    assert "keep_ratio 0.5" in text
    assert "declined: the loop is fused" in text
    assert "data:image/svg+xml;base64," in page
    assert render_html(REPORT) == render_html(REPORT)


def test_page_shows_targets_and_the_receipt() -> None:
    targets = {
        "onnx": {
            "precision": "int8",
            "relative_error": 0.005,
            "bytes": 946_173,
            "seconds": 1.5,
            "nodes": {"denoiser": {"Mul": 84, "Add<b>": 60}, "solver": {"Add": 1}},
        },
        "aoti": {"precision": "float32", "bytes": 3_000_000, "seconds": 20.0},
    }
    receipt = {"seconds": 0.25, "relative_error": 0.0052, "machine": "x86_64, 2 cores"}
    page = render_html(Report((), targets=targets, receipt=receipt))
    assert "<td>int8</td>" in page and "<td>145</td>" in page and "0.005" in page
    assert "onnx, denoiser: 84 Mul, 60 Add&lt;b&gt;" in page and "Add<b>" not in page
    assert "x86_64, 2 cores, with a relative error of 0.0052" in page
    assert "<h2>Targets</h2>" not in render_html(Report(()))


def test_grid_places_pictures_row_by_row() -> None:
    pictures = [np.full((2, 2), value, np.uint8) for value in (1, 2, 3)]
    canvas = grid(pictures, columns=2, gap=1)
    assert canvas.shape == (5, 5)
    assert canvas[0, 0] == 1 and canvas[0, 3] == 2 and canvas[3, 0] == 3
    assert canvas[3, 3] == 255 and canvas[2, 0] == 255


def test_pictures_clip_and_become_png() -> None:
    assert to_picture(np.array([-2.0, 0.0, 2.0]), -1, 1).tolist() == [0, 128, 255]
    assert png(token_map([[True, False]]), 3).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, "0"), (999, "999"), (1234, "1.23 k"), (5.6e12, "5.6 T")]
)
def test_amounts(value: float, expected: str) -> None:
    assert amount(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5e-6, "5 µs"), (0.0123, "12.3 ms"), (2.0, "2 s"), (float("nan"), "not measured")],
)
def test_durations(value: float, expected: str) -> None:
    assert seconds_text(value) == expected


def test_plain_takes_arrays_and_refuses_no_type() -> None:
    assert plain({"a": np.arange(2), "b": np.float32(0.5), "c": {1}, "d": object}) == {
        "a": [0, 1],
        "b": 0.5,
        "c": [1],
        "d": "<class 'object'>",
    }


FACTS = Report(
    (),
    costs={
        "flops": 3e9, "bytes": 4e6, "engine_calls": 9,
        "graphs": {
            "step": {"calls": 8, "flops": 2e9, "bytes": 3e6, "nodes": 195, "ops": {}},
            "de<b>coder": {"calls": 1, "flops": 1e9, "bytes": 1e6, "nodes": 12, "ops": {}},
        },
    },
    source={"graphs": "ab" * 32, "weights": "cd" * 32},
    budget={"psnr": 25.0, "token_match": 0.9},
    kernels={
        "solver_step": {
            "sm_100": {"registers": 40, "spill_bytes": 0, "shared_bytes": 0},
            "sm_80": {"registers": 39, "spill_bytes": 16, "shared_bytes": 1024},
        }
    },
    receipt={
        "seconds": 0.25, "machine": "x86_64", "relative_error": 1e-7,
        "ratio": 4.3, "interval": [4.1, 4.5],
        "speedup": {"value": 6.2, "interval": None, "note": "no interval: too slow"},
        "quality": {
            "psnr": {"value": 36.3, "interval": [35.0, 38.0]},
            "relative_error": {"value": 0.02, "interval": None},
        },
        "quality_note": "no interval of relative_error: one sample",
        "graphs": {"step": "ef" * 32}, "weights": "12" * 32, "versions": {"torch": "2.13.0"},
    },
)  # fmt: skip


def test_facts_of_a_bundle_are_on_the_page_and_the_terminal() -> None:
    assert cost_cells(FACTS)[-1] == ["all", "9", "3 G", "4 M", "207"]
    assert [cells[1] for cells in kernel_cells(FACTS)] == ["sm_80", "sm_100"]
    assert quality_cells(FACTS) == [
        ["psnr", "36.3 dB", "[35, 38]", "25 dB"],
        ["relative_error", "0.02", "", ""],
        ["token_match", "not measured", "", "0.9"],
    ]
    page, text = render_html(FACTS), printed(FACTS)
    for expected in (
        "36.3 dB", "[35, 38]", "25 dB", "sm_100", "1024", "abababababab…", "efefefefefef…",
        "6.2x", "4.3 [4.1, 4.5]", "torch 2.13.0", "no interval: too slow",
        "no interval of relative_error: one sample",
    ):  # fmt: skip
        assert expected in page and expected in text, expected
    assert "de&lt;b&gt;coder" in page and "de<b>coder" in text
    bare = render_html(Report(()))
    for heading in ("Cost of a request", "Kernels on GPUs", "Receipt"):
        assert f"<h2>{heading}</h2>" in page and heading not in bare

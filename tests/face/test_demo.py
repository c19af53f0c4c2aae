"""The demo leaves what it promises; with tiny sample counts, so its figures mean nothing here."""

import json
from pathlib import Path

import pytest

from optimize.cli import run_command


@pytest.mark.slow
def test_demo_leaves_bundle_report_page_and_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "zoo.BASELINE_STEPS": 12,
        "demo_figures.FINE_STEPS": 16,
        "demo_figures.FINE_SAMPLES": 10,
        "demo_figures.CURVE_STEPS": (4, 8),
        "demo_figures.TIMED_BATCH": 2,
    }.items():
        monkeypatch.setattr(f"optimize.commands.{name}", value)
    out = tmp_path / "demo"
    assert run_command(["demo", "--out", str(out), "--quick"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert {"speedup", "quality", "controls", "passes"} <= set(report)
    assert report["speedup"] > 0
    assert [row["role"] for row in report["rows"]] == [
        "baseline", "ours", "control", "control", "part", "part",
    ]  # fmt: skip
    for row in report["rows"]:
        assert row["seconds"] > 0 and "distance to the fine solution" in row["quality"]
    assert set(report["quality"]["ours"]) == {
        "distance to the fine solution",
        "Fréchet distance",
        "judge accuracy",
    }
    assert "active" in report["passes"][0]["details"]
    page = (out / "report.html").read_text()
    assert "Tokens recomputed by cache_regions" in page and page.count("data:image/png") > 6
    assert (out / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "bundle" / "manifest.json").is_file()
    assert run_command(["demo", "--out", str(out)]) == 2

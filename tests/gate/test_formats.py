import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from optimize.gate.checks import Check, Verdict
from optimize.gate.formats import files, junit, markdown, tell_github, to_dict, write_files
from optimize.gate.history import keep, read_history, render_history, write_page
from optimize.ir.errors import GateError
from optimize.runtime.errors import ResourceError


def verdict(outcome="pass", ratio=1.01, flops=1e9):
    return Verdict(
        candidate="build/bundle",
        baseline="build/base",
        checks=(
            Check(
                "flops", "pass", "flops: 1 GFLOP | same", flops, 1e9, 0.0, flops / 1e9, unit="FLOP"
            ),
            Check("cpu_time", outcome, "CPU time: told", 1.01, 1.0, 0.025, ratio, 0.99, 1.03, "s"),
            Check("wall_time", "fail", "ignored", gates=False),
        ),
        samples={"cpu_time": {"candidate": [1.0, 1.02, 1.01], "baseline": [1.0, 1.0, 1.0]}},
        machine={"processor": "a processor", "cores": "2"},
        notes=("a note",),
        facts={"numbers": {"flops": flops}, "quality": {"psnr": 30.0}},
        seconds=2.5,
    )


@pytest.mark.parametrize(("outcome", "kind"), [("fail", "failure"), ("inconclusive", "error")])
def test_junit_counts_failures_and_what_could_not_be_decided(outcome, kind):
    suite = ElementTree.fromstring(junit(verdict(outcome)))
    assert suite.get("tests") == "2"
    assert suite.get("failures" if kind == "failure" else "errors") == "1"
    (bad,) = suite.iter(kind)
    assert bad.text == "CPU time: told"


def test_markdown_has_failures_first_and_keeps_its_table():
    lines = markdown(verdict("fail")).splitlines()
    rows = [line for line in lines if line.startswith("| ") and "metric" not in line]
    assert "cpu_time" in rows[0] or "wall_time" in rows[0]
    assert all(line.replace("\\|", "").count("|") == 5 for line in rows)
    assert "- a note" in lines


def test_pytest_benchmark_reads_its_format(tmp_path):
    write_files(verdict(), tmp_path)
    stored = tmp_path / "store" / "Linux-CPython" / "0001_a.json"
    stored.parent.mkdir(parents=True)
    stored.write_text((tmp_path / "pytest-benchmark.json").read_text())
    command = [sys.executable, "-m", "pytest_benchmark", "--storage", str(tmp_path / "store")]
    done = subprocess.run([*command, "compare"], capture_output=True, text=True, check=False)
    assert "bundle[cpu_time]" in done.stdout, done.stderr


def test_action_benchmark_has_a_number_and_a_unit_each(tmp_path):
    items = json.loads(files(verdict())["action-benchmark.json"])
    assert [(item["name"], item["unit"]) for item in items] == [
        ("flops", "FLOP"),
        ("cpu_time", "s"),
    ]
    assert all(isinstance(item["value"], float) for item in items)


def test_every_file_is_whole(tmp_path):
    write_files(verdict(), tmp_path / "out")
    write_files(verdict("fail"), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(files(verdict()))
    assert json.loads((tmp_path / "out" / "gate.json").read_text())["outcome"] == "fail"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file/out: cannot be written"):
        write_files(verdict(), tmp_path / "file" / "out")


def test_github_gets_a_summary_and_annotations(tmp_path):
    summary = tmp_path / "summary.md"
    environment = {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_ACTIONS": "true"}
    lines = tell_github(verdict("fail"), environment)
    assert lines == ["::error title=optimize gate, cpu_time::CPU time: told"]
    assert "optimize gate: fail" in summary.read_text()
    assert tell_github(verdict("fail"), {}) == []
    lost = tell_github(verdict(), {"GITHUB_STEP_SUMMARY": str(tmp_path / "no" / "where")})
    assert lost[0].startswith("::warning::")


def test_receipts_are_kept_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_SHA", "abcdef0123456789")
    store = tmp_path / "store"
    for ratio, flops in ((1.0, 1e9), (1.01, 1.1e9), (0.9, 1.2e9)):
        keep(verdict(ratio=ratio, flops=flops), store)
    keep(verdict("fail", ratio=1.3, flops=1.2e9), store)
    (store / "other.json").write_text("{}")
    assert len(list(store.iterdir())) == 5
    history = read_history(store)
    assert len(history.points) == 4
    assert history.problems == ("other.json: no receipt (its format is not 'optimize-gate')",)
    assert history.creep() == [f"flops: grew by 20.0% since {history.points[0].date[:10]}"]
    write_page(history, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page == render_history(history)
    assert "Creep: flops" in page and "abcdef012345" in page and "CPU time: told" in page
    assert page.count('<img class="plot"') == 3
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page


def test_a_history_without_receipts_is_an_error(tmp_path):
    with pytest.raises(GateError, match="found no receipt"):
        read_history(tmp_path)
    with pytest.raises(GateError, match="found no folder"):
        read_history(tmp_path / "none")


def test_everything_is_json():
    data = to_dict(verdict())
    json.dumps(data, allow_nan=False)
    assert data["samples"]["cpu_time"]["candidate"] == [1.0, 1.02, 1.01]

"""`optimize gate` as a newcomer meets it."""

import json
from pathlib import Path

import pytest
import torch

from optimize.capture.from_denoiser import capture
from optimize.cli import run_command
from optimize.ir.denoise import DenoiseLoop
from tests.conftest import TinyDenoiser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two bundles: "few" steps and "more"."""
    made = tmp_path_factory.mktemp("gate")
    torch.manual_seed(0)
    example = {
        "hidden_states": torch.randn(2, 6, 4),
        "timestep": torch.ones(2),
        "shift": torch.zeros(2),
    }
    module = TinyDenoiser().eval()
    for name, steps in {"few": 8, "more": 16}.items():
        capture(module, example, loop=DenoiseLoop(steps=steps)).export(made / name, example=True)
    return made


@pytest.fixture
def gate(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        code = run_command(["gate", *arguments])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def test_costs_pass_fail_and_are_written(gate, folder, tmp_path):
    code, shown, _ = gate("few", "--baseline", "few", "--no-time", "--out", str(tmp_path / "out"))
    assert code == 0 and "few against few: pass" in shown
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"gate.json", "junit.xml"}
    code, shown, _ = gate("more", "--baseline", "few", "--no-time")
    assert code == 1
    assert "engine_calls: 32, baseline 16 (+100.00%); at most 16 is allowed" in shown
    # Kernels that passed on every architecture are one row.
    assert shown.count("kernel_registers") <= 1


def test_times_and_json(gate):
    code, shown, _ = gate("few", "-b", "few", "--seconds", "20", "--json")
    data = json.loads(shown)
    assert code in (0, 3) and data["outcome"] in ("pass", "inconclusive")
    (cpu,) = [check for check in data["checks"] if check["metric"] == "cpu_time"]
    assert 0.8 < cpu["ratio"] < 1.2


def test_no_baseline_is_3_or_0_when_told(gate):
    code, shown, _ = gate("few", "--baseline", "nothing")
    assert code == 3 and "found no baseline at nothing" in shown
    assert gate("few", "--baseline", "nothing", "--allow-missing")[0] == 0
    # What is allowed to be missing is the baseline, and nothing else.
    assert gate("more", "--baseline", "few", "--no-time", "--allow-missing")[0] == 1


def test_a_recorded_baseline(gate, tmp_path):
    path = str(tmp_path / "baseline.json")
    assert gate("few", "--baseline", path, "--no-time")[0] == 3
    assert gate("few", "--baseline", path, "--no-time")[0] == 0
    assert gate("more", "--baseline", path, "--no-time")[0] == 1
    assert gate("more", "--baseline", path, "--no-time", "--update")[0] == 3
    assert gate("more", "--baseline", path, "--no-time")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "found no BUNDLE"),
        (("few",), "found no --baseline REF"),
        (("few", "-b", "few", "--policy", "none.yaml"), "optimize gate --init"),
        (("few", "-b", "few", "--seconds", "0"), "greater than or equal to 1"),
    ],
)
def test_wrong_use_is_2(gate, arguments, expected):
    code, shown, said = gate(*arguments)
    assert code == 2 and expected in shown + said


def test_init_writes_a_policy_that_works(gate, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    code, shown, _ = gate("--init")
    assert code == 0 and "wrote gate.yaml" in shown
    few = str(folder / "few")
    assert gate(few, "-b", few, "--no-time", "--policy", "gate.yaml")[0] == 0
    assert gate("--init")[0] == 2


def test_github_gets_annotations(gate, monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    _, shown, _ = gate("more", "--baseline", "few", "--no-time")
    assert "::error title=optimize gate, engine_calls::engine_calls: 32" in shown
    assert "| ❌ | engine_calls |" in (tmp_path / "summary.md").read_text()


def test_history_of_stored_receipts(gate, tmp_path):
    store = tmp_path / "store"
    for name in ("few", "more"):
        gate(name, "--baseline", "few", "--no-time", "--store", str(store))
    page = tmp_path / "history.html"
    code, shown, _ = gate("history", str(store), "--out", str(page))
    assert code == 0 and "2 receipts, page written to" in shown
    assert "engine_calls: grew by 100.0%" in shown
    assert "<svg" in page.read_text() or "data:image/svg+xml" in page.read_text()
    assert gate("history", str(tmp_path / "none"))[0] == 2


def test_the_workflow_of_the_docs_is_the_one_that_is_written():
    root = Path(__file__).parent.parent.parent
    docs = (root / "docs" / "examples" / "optimize-gate.yml").read_text()
    assert docs == (root / "optimize" / "gate" / "workflow.yml").read_text()

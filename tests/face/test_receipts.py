"""What a bundle says about itself: costs, source, budget, receipt; and who checks it."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimize.api import apply_recipe
from optimize.cli import run_command
from optimize.ir.program import Program
from optimize.ir.report import Report
from optimize.measure.cost import program_bytes, program_flops
from optimize.recipes.recipe import Recipe

RECIPE = {
    "passes": [{"cache_regions": {"warmup": 4, "optional": True}}, {"fuse_solver": {"steps": 3}}],
    "budget": {"psnr": 3.0, "relative_error": 0.9},
    "calibration": {"samples": 4},
}


@pytest.fixture(scope="module")
def fused(toy_program: Program) -> Program:
    return apply_recipe(toy_program, Recipe.load(RECIPE))


@pytest.fixture(scope="module")
def bundle(fused: Program, toy_program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("receipts") / "bundle"
    return fused.export(path, recipe=RECIPE, example=True, baseline=toy_program)


def report_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "report.json").read_text())
    return found


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_report_says_what_a_request_costs(bundle: Path, fused: Program) -> None:
    report = report_of(bundle)
    costs = report["costs"]
    assert report["format"] == "1.1"
    assert costs["flops"] == pytest.approx(program_flops(fused)) and costs["flops"] > 0
    assert costs["bytes"] == pytest.approx(program_bytes(fused))
    step = costs["graphs"]["step"]
    assert costs["engine_calls"] == step["calls"] == 3
    assert step["nodes"] == sum(step["ops"].values())
    assert step["ops"]["optimize.solver_step"] == 1


@pytest.mark.parametrize(
    ("form", "calls"), [({"loop": "unrolled", "unroll": 2}, 2), ({"loop": "onnx_loop"}, 1)], ids=str
)
def test_engine_calls_are_those_of_the_form(
    fused: Program, tmp_path: Path, form: dict[str, Any], calls: int
) -> None:
    costs = report_of(fused.export(tmp_path / "bundle", **form))["costs"]
    assert costs["engine_calls"] == calls
    assert sum(graph["calls"] for graph in costs["graphs"].values()) == calls
    assert costs["flops"] == pytest.approx(program_flops(fused))


def test_report_has_source_budget_and_the_quality_of_the_result(
    bundle: Path, fused: Program, toy_program: Program
) -> None:
    report = report_of(bundle)
    source = toy_program.source_digest
    assert report["source"] == {"graphs": source.graphs, "weights": source.weights}
    assert report["budget"] == {"psnr": 3.0, "relative_error": 0.9}
    last = fused.history[-1]
    assert report["quality_of_result"] == {
        "psnr": pytest.approx(last.details["psnr"]),
        "relative_error": pytest.approx(last.error),
    }


def test_a_program_without_passes_has_its_own_source(toy_program: Program, tmp_path: Path) -> None:
    first = report_of(toy_program.export(tmp_path / "a"))
    static = report_of(toy_program.export(tmp_path / "b", static={"batch": 2}, example=True))
    assert first["source"] == static["source"]
    assert first["source"]["graphs"] == toy_program.source_digest.graphs
    assert first["budget"] == first["quality_of_result"] == first["receipt"] == {}
    assert first["kernels"] == {}
    # It is its own reference: what is left is the rounding of ONNX Runtime.
    assert 0 <= static["receipt"]["quality"]["relative_error"]["value"] < 1e-5
    assert "speedup" not in static["receipt"] and static["receipt"]["passes"] == []


def test_receipt_is_bound_to_the_files(bundle: Path, fused: Program) -> None:
    receipt = report_of(bundle)["receipt"]
    assert receipt["graphs"] == {"step": digest_of(bundle / "graphs" / "step.onnx")}
    assert receipt["weights"] == digest_of(bundle / "graphs" / "weights.safetensors")
    assert receipt["tables"] == digest_of(bundle / "tables.safetensors")
    assert receipt["source"] == report_of(bundle)["source"]
    assert [item["name"] for item in receipt["passes"]] == ["fuse_solver"]
    assert receipt["passes"][0]["options"]["steps"] == 3
    assert set(receipt["versions"]) == {
        "optimize", "python", "numpy", "onnx", "onnxruntime", "torch",
    }  # fmt: skip
    assert not any("date" in name for name in receipt)


def test_receipt_measures_with_intervals(bundle: Path, fused: Program) -> None:
    receipt = report_of(bundle)["receipt"]
    low, high = receipt["interval"]
    assert 0 < low <= receipt["ratio"] <= high
    low, high = receipt["speedup"]["interval"]
    assert 0 < low <= receipt["speedup"]["value"] <= high
    for name in ("psnr", "relative_error"):
        item = receipt["quality"][name]
        low, high = item["interval"]
        assert low <= item["value"] <= high
    # The same requests, the same reference: the figure of the last pass, in ONNX Runtime.
    value = receipt["quality"]["relative_error"]["value"]
    assert value == pytest.approx(fused.history[-1].error, rel=1e-4)
    assert "quality_note" not in receipt


def test_without_the_program_before_quality_is_that_of_the_last_pass(
    fused: Program, tmp_path: Path
) -> None:
    receipt = report_of(fused.export(tmp_path / "bundle", example=True))["receipt"]
    assert receipt["quality"]["relative_error"] == {
        "value": pytest.approx(fused.history[-1].error),
        "interval": None,
    }
    assert receipt["quality_note"].startswith("no interval: the program before the passes was not")
    assert "speedup" not in receipt


def test_the_speedup_over_the_same_program_is_not_measured(
    toy_program: Program, tmp_path: Path
) -> None:
    path = toy_program.export(tmp_path / "bundle", example=True, baseline=toy_program)
    assert report_of(path)["receipt"]["speedup"] == {
        "value": 1.0,
        "interval": None,
        "note": "not measured: these are the graphs and weights of the captured program",
    }
    other = toy_program.export(
        tmp_path / "half", example=True, baseline=toy_program, precision="bfloat16"
    )
    assert report_of(other)["receipt"]["speedup"]["interval"] is not None


def test_figures_that_are_not_timed_are_the_same_again(
    bundle: Path, fused: Program, toy_program: Program, tmp_path: Path
) -> None:
    again = fused.export(tmp_path / "again", recipe=RECIPE, example=True, baseline=toy_program)
    one, other = report_of(bundle), report_of(again)
    for report in (one, other):
        for timed in ("seconds", "work_seconds", "ratio", "interval", "speedup"):
            del report["receipt"][timed]
        for target in report["targets"].values():
            del target["seconds"]
    assert one == other


def test_kernels_are_compiled_with_an_example_only(bundle: Path, fused: Program) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    used = report_of(bundle)["kernels"]["solver_step"]
    assert list(used) == ["sm_100", "sm_120", "sm_80", "sm_90"]
    assert set(used["sm_90"]) == {"registers", "spill_bytes", "shared_bytes"}


def test_quality_of_a_result_without_error_has_no_psnr(fused: Program) -> None:
    record = replace(fused.history[-1], error=0.0, details={"psnr": float("inf")})
    assert Report((record,)).quality_of_result == {"relative_error": 0.0}
    assert Report((replace(record, error=None),)).quality_of_result == {}
    assert Report((replace(record, declined="why"),)).quality_of_result == {}


def rewritten(bundle: Path, tmp_path: Path, change: Any) -> Path:
    """A copy whose report is another, with hashes made to match."""
    copy = Path(shutil.copytree(bundle, tmp_path / "changed"))
    report = report_of(copy)
    change(report)
    content = (json.dumps(report) + "\n").encode()
    (copy / "report.json").write_bytes(content)
    package = json.loads((copy / "manifest.json").read_text())
    ours = package["additional_metadata"]["optimize"]
    digest = hashlib.sha256(content).hexdigest()
    ours["files"]["report.json"] = {"size": len(content), "sha256": digest}
    ours["report_sha256"] = digest
    (copy / "manifest.json").write_text(json.dumps(package))
    return copy


def verify(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = run_command(["verify", str(path), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_verify_holds_the_receipt_to_the_manifest(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, data = verify(bundle, capsys)
    assert (code, data["verdict"]) == (0, "pass")
    assert data["receipt"] == {"holds": True, "why": "of these 3 files, by their hashes"}
    assert run_command(["verify", str(bundle)]) == 0
    assert "receipt: of these 3 files, by their hashes: pass" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda it: it.update(weights="0" * 64), "of another graphs/weights.safetensors: found "),
        (lambda it: it.update(tables="0" * 64), "of another tables.safetensors: found 000000000"),
        (lambda it: it["graphs"].update(step="ab" * 32), "of another graphs/step.onnx: found ab"),
        (lambda it: it["graphs"].update(more="0" * 64), "of graphs more, step, expected step; its"),
        (lambda it: it.update(graphs=[]), "of graphs [], expected step; its figures are not of"),
    ],
    ids=["weights", "tables", "graph", "roles", "no roles"],
)
def test_a_receipt_of_another_bundle_fails(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Any,
    expected: str,
) -> None:
    other = rewritten(bundle, tmp_path, lambda report: change(report["receipt"]))
    code, data = verify(other, capsys)
    assert (code, data["verdict"], data["receipt"]["holds"]) == (1, "fail", False)
    assert expected in data["receipt"]["why"]
    assert data["receipt"]["why"].endswith("export the bundle again")


def test_bundles_from_before_receipts_were_bound_still_verify(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def older(report: dict[str, Any]) -> None:
        report["format"] = "1.0"
        for name in ("costs", "source", "budget", "kernels", "quality_of_result"):
            del report[name]
        kept = ("seconds", "work_seconds", "ratio", "machine", "relative_error")
        report["receipt"] = {name: report["receipt"][name] for name in kept}

    code, data = verify(rewritten(bundle, tmp_path, older), capsys)
    assert (code, data["verdict"]) == (0, "pass")
    assert data["receipt"] == {"holds": True, "why": "none that names graphs or weights"}


def test_what_is_no_receipt_is_taken_for_none(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, data = verify(rewritten(bundle, tmp_path, lambda it: it.update(receipt=[1])), capsys)
    assert code == 0 and data["receipt"]["holds"]


def test_run_shows_the_receipt_and_writes_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tests.face.test_export_cli import MODEL

    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "r.yaml").write_text("passes: [{fuse_solver: {steps: 1}}]\nbudget: {psnr: 1}\n")
    ask = ["run", f"{tmp_path}/net.py:make", "-r", f"{tmp_path}/r.yaml", "--out"]
    assert run_command([*ask, f"{tmp_path}/a", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    written = report_of(tmp_path / "a")
    for name in ("costs", "source", "budget", "kernels", "receipt", "targets"):
        assert data[name] == written[name] != {}
    assert set(data["receipt"]["speedup"]) == {"value", "interval"}
    assert run_command([*ask, f"{tmp_path}/b"]) == 0
    shown = capsys.readouterr().out
    for expected in ("Cost of a request", "sm_120", "captured weights:", "speed-up over", "1 dB"):
        assert expected in shown

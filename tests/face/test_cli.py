"""The command line as a newcomer meets it: output, exit codes, one clear message per error."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from optimize.cli import COMMANDS, run_command

ROOT = Path(__file__).parents[2]

MODEL = """
import torch
from torch import nn
from optimize import DenoiseLoop


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, tokens):
        heads = [
            part(self.norm(tokens)).reshape(tokens.shape[0], -1, 2, 4).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        ]
        attended = nn.functional.scaled_dot_product_attention(*heads)
        return tokens + attended.transpose(1, 2).reshape(tokens.shape)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj_in, self.proj_out = nn.Linear(1, 8), nn.Linear(8, 1)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, hidden_states, timestep):
        tokens = hidden_states.flatten(2).transpose(1, 2)
        tokens = self.proj_in(tokens) + timestep[:, None, None] * 0.001
        for block in self.blocks:
            tokens = block(tokens)
        return self.proj_out(tokens).transpose(1, 2).reshape(hidden_states.shape)


def tiny():
    torch.manual_seed(0)
    inputs = {"hidden_states": torch.zeros(2, 1, 4, 4), "timestep": torch.zeros(2)}
    return Model().eval(), inputs, DenoiseLoop(steps=12)


def not_a_triple():
    return Model()


def not_a_model():
    return "weights.pt", {}, None


def broken():
    raise KeyError("inside the user's file")
"""

RECIPE = """
passes:
  - cache_regions: {warmup: 2, max_age: 4}
  - fuse_solver: {solver: dpm_solver_pp, steps: 8}
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "model.py").write_text(MODEL)
    return f"{tmp_path}/model.py"


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "r.yaml").write_text(RECIPE)
    return f"{tmp_path}/r.yaml"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, and standard error without line breaks."""
    code = run_command(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


def test_starts_without_torch_or_onnxruntime() -> None:
    script = (
        "import sys, optimize.cli\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'matplotlib', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0 and out.startswith("optimize 0.")
    code, out, _ = run(capsys, "--help")
    assert code == 0 and all(name in out for name in COMMANDS)
    assert "5 bad bundle" in " ".join(out.split())


def test_recipes_lists_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "recipes")
    assert code == 0 and "image-fast" in out and "cache_regions, fuse_solver" in out
    code, out, _ = run(capsys, "recipes", "--json")
    assert {"name", "passes", "description"} <= set(json.loads(out)[0])
    code, out, _ = run(capsys, "recipes", "image-fast")
    assert out.startswith("# ") and "passes:" in out


def test_passes_lists_and_describes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "passes")
    assert code == 0 and "cache_regions" in out and "approximate" in out
    code, out, _ = run(capsys, "passes", "cache_regions")
    assert "Declines when:" in out and "keep_ratio:" in out
    code, out, _ = run(capsys, "passes", "fuse_solver", "--json")
    assert json.loads(out)["options"]["steps"] == {
        "type": "a whole number or null",
        "default": None,
    }


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["recipes", "image-fats"], 2, "unknown recipe 'image-fats'; known recipes: balanced"),
        (["recipes", "image-fats"], 2, "Did you mean image-fast?"),
        (["passes", "fuse_slover"], 2, "unknown pass 'fuse_slover'; known passes: attach_draft"),
        (["inspect", "zoo:digit-dit"], 2, "known zoo models: zoo:arithmetic, zoo:digits-d"),
        (["inspect", "zoo:digit-dit"], 2, "Did you mean zoo:digits-dit?"),
        (["inspect", "nothing.py:make"], 2, "found no file nothing.py"),
        (["inspect", "model.py"], 2, "found no function, expected model.py:function"),
        (["inspect", "/no/such/folder"], 6, "found no such folder, expected a folder with"),
        (["inspect", "word"], 2, "unknown model 'word'; expected zoo:arithmetic, zoo:digits"),
        (["run", "zoo:digits-dit", "-r", "x.yaml"], 2, "found nothing there, expected a YAML"),
        (["run", "zoo:digits-dit", "--out", "-"], 2, "--out '-': expected the path of a new fold"),
        (["bogus"], 2, "No such command 'bogus'"),
        (["run"], 2, "Missing argument 'MODEL'"),
        (
            ["bench", "a", "b", "--repeats", "1"],
            2,
            "Invalid value for '--repeats': Input should be greater than",
        ),
    ],
)
def test_usage_errors_are_one_message(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, expected: str
) -> None:
    found, out, error = run(capsys, *arguments)
    assert (found, out) == (code, "")
    assert expected in error.replace("│ ", "") and "Traceback" not in error


@pytest.mark.parametrize(
    ("function", "code", "expected"),
    [
        ("tinny", 2, "found no function 'tinny'; did you mean tiny?"),
        ("not_a_triple", 6, "returned Model, expected (module, example_inputs, loop)"),
        ("not_a_model", 6, "model: found str, expected a torch.nn.Module"),
        ("broken", 6, 'KeyError: "inside the user\'s file" This is a defect of optimize, or of'),
    ],
)
def test_model_files_that_are_wrong(
    capsys: pytest.CaptureFixture[str], model: str, function: str, code: int, expected: str
) -> None:
    found, _, error = run(capsys, "inspect", f"{model}:{function}")
    assert found == code and expected in error


def test_traceback_is_shown_on_request(model: str) -> None:
    with pytest.raises(KeyError):
        run_command(["inspect", f"{model}:broken", "--traceback"])


def test_out_is_checked_before_the_work(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "pipeline"
    (folder / "inside").mkdir(parents=True)
    cases = [
        (f"{model}:tiny", tmp_path / "file", 2, "found a file, expected the path of a new folder"),
        (f"{model}:tiny", tmp_path, 2, "found a folder with files in it"),
        (f"{model}:tiny", tmp_path / "file" / "under", 4, "cannot be made: "),
        (str(folder), folder / "inside" / "out", 2, "lies inside the input"),
    ]
    for item, out, code, expected in cases:
        found, _, error = run(capsys, "export", item, "--out", str(out))
        assert (found, expected in error) == (code, True), error


def test_inspect_names_axes_sites_and_layers(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    code, out, _ = run(capsys, "inspect", f"{model}:tiny", "--json")
    data: dict[str, Any] = json.loads(out)
    assert code == 0 and data["layers"] == {"blocks": 2}
    denoiser = data["graphs"]["denoiser"]
    assert [site["queries"] for site in denoiser["attention"]] == [16, 16]
    assert denoiser["calls"] == 12
    names = {axis["name"]: axis for axis in denoiser["axes"]}
    assert names["tokens"]["size"] == "16" and "batch" in names
    code, out, _ = run(capsys, "inspect", f"{model}:tiny", "--code")
    assert "attention site" in out and "for step in range(12):" in out


def test_inspect_predicts_seconds_on_a_machine(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    code, out, _ = run(capsys, "inspect", f"{model}:tiny", "--machine", "h100", "--json")
    predicted = json.loads(out)["predicted"]
    calls = predicted["seconds_per_call"]
    assert code == 0 and predicted["machine"] == "H100 SXM"
    assert predicted["seconds_per_request"] == pytest.approx(
        12 * (calls["denoiser"] + calls["solver"])
    )
    assert "unmeasured on GPUs" in predicted["error"]
    code, out, _ = run(capsys, "inspect", f"{model}:tiny", "--machine", "this-cpu")
    assert code == 0 and "this CPU, 1 thread: " in out and " predicted" in out
    code, _, error = run(capsys, "inspect", f"{model}:tiny", "--machine", "h1000")
    assert code == 2 and "expected one of this-cpu, T4, A100 40GB SXM" in error


def test_run_reports_without_writing(
    capsys: pytest.CaptureFixture[str], model: str, recipe: str
) -> None:
    code, out, _ = run(capsys, "run", f"{model}:tiny", "-r", recipe, "--json")
    data = json.loads(out)
    assert code == 0 and data["bundle"] is None
    assert [item["name"] for item in data["passes"]] == ["cache_regions", "fuse_solver"]
    active = data["passes"][0]["details"]["active"]
    assert len(active) == 8 and len(active[0]) == 4 and len(active[0][0]) == 4
    code, out, _ = run(capsys, "run", f"{model}:tiny", "-r", recipe, "--diff")
    assert code == 0 and "cache_regions" in out and "+def step" in out


def test_budget_exceeded_says_which_pass_cost_what(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    path = tmp_path / "strict.yaml"
    path.write_text(RECIPE + "budget: {psnr: 200, relative_error: 1e-9}\n")
    code, out, error = run(capsys, "run", f"{model}:tiny", "-r", str(path))
    assert (code, out) == (1, "")
    assert "recipe strict: over the quality budget: found psnr" in error
    assert "expected at least 200 and relative_error" in error
    assert "after cache_regions: relative_error" in error and "after fuse_solver:" in error


def test_required_pass_that_declines_is_a_recipe_error(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    path = tmp_path / "late.yaml"
    path.write_text("passes: [{cache_regions: {warmup: 12}}]")
    code, _, error = run(capsys, "run", f"{model}:tiny", "-r", str(path))
    assert code == 2 and "cache_regions: none of the 12 steps is a region step" in error


class TestBundles:
    """The way from a model to a bundle and back."""

    @pytest.fixture(autouse=True)
    def needs_bundles(self) -> None:
        pytest.importorskip("optimize.runtime.session")

    def test_run_verify_bench_inspect(
        self, capsys: pytest.CaptureFixture[str], model: str, recipe: str, tmp_path: Path
    ) -> None:
        bundle, plain = str(tmp_path / "fast"), str(tmp_path / "plain")
        code, out, _ = run(capsys, "run", f"{model}:tiny", "-r", recipe, "--out", bundle)
        assert code == 0 and f"bundle written to {bundle}" in out.replace("\n", "")
        for name in ("manifest.json", "report.json", "report.html", "recipe.yaml"):
            assert (Path(bundle) / name).is_file()

        code, _, error = run(capsys, "run", f"{model}:tiny", "-r", recipe, "--out", bundle)
        assert code == 2 and "pass --overwrite" in error
        code, *_ = run(capsys, "run", f"{model}:tiny", "-r", recipe, "--out", bundle, "--overwrite")
        assert code == 0

        code, out, _ = run(capsys, "verify", bundle, "--model", f"{model}:tiny", "--json")
        data = json.loads(out)
        assert (code, data["verdict"], data["signed"]) == (0, "pass", False)
        assert 0 <= data["error"] < 1e-4
        assert data["checks"]["stored results"]["holds"] and data["checks"]["repeated"]["holds"]
        code, out, _ = run(capsys, "verify", bundle, "--remeasure", "--slower", "1000", "--json")
        data = json.loads(out)
        assert (code, data["speed"]["verdict"]) == (0, "pass") and data["speed"]["promised"] > 0
        code, out, _ = run(
            capsys, "verify", bundle, "--model", f"{model}:tiny", "--limit", "0", "--json"
        )
        assert code == (1 if json.loads(out)["error"] else 0)

        code, out, _ = run(capsys, "export", f"{model}:tiny", "--out", plain)
        assert code == 0
        few = ("--repeats", "4", "--threads", "1")
        code, out, _ = run(capsys, "bench", bundle, plain, "--json", *few, "--at-least", "1000")
        data = json.loads(out)
        assert (code, data["verdict"]) == (1, "fail")
        assert len(data["raw_seconds"]["bundle"]) == 4
        low, high = data["interval"]
        assert low <= data["speedup"] <= high
        code, out, _ = run(capsys, "bench", bundle, f"{model}:tiny", *few, "--at-least", "0.0001")
        assert code in (0, 3) and "95 % interval" in out

        code, _, error = run(capsys, "verify", bundle, "--target", "aoti", "--trust-native")
        assert code == 5 and "found 'aoti', expected one of onnx" in error
        small = str(tmp_path / "small")
        lower = ("--precision", "bfloat16", "--static", "batch=1", "--out", small)
        assert run(capsys, "export", f"{model}:tiny", *lower)[0] == 0
        code, out, _ = run(capsys, "verify", small, "--json")
        check = json.loads(out)["checks"]["stored results"]
        assert code == 0 and check["limit"] > 1e-4 and check["error"] > 1e-6

        models = str(tmp_path / "models")
        code, out, _ = run(capsys, "export", plain, "--layout", "triton-server", "--out", models)
        assert code == 0 and "triton-server layout written to" in out.replace("\n", " ")
        assert (tmp_path / "models" / "plain" / "1" / "model.py").is_file()
        code, _, error = run(capsys, "export", plain, "--out", str(tmp_path / "other"))
        assert code == 2 and "found a bundle, expected a model to make one from" in error

        looped = str(tmp_path / "looped")
        form = ("--loop", "unrolled", "--unroll", "5", "--out", looped)
        assert run(capsys, "export", f"{model}:tiny", *form)[0] == 0
        code, out, _ = run(capsys, "verify", looped, "--model", f"{model}:tiny", "--json")
        assert code == 0 and json.loads(out)["error"] < 1e-5

        code, out, _ = run(capsys, "inspect", bundle)
        assert code == 0 and "unsigned" in out and "manifest" not in out
        code, out, _ = run(capsys, "inspect", bundle, "--json")
        assert json.loads(out)["signed"] is False

    def test_bad_bundles_exit_with_five(
        self, capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
    ) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        for command in ("verify", "inspect"):
            code, _, error = run(capsys, command, str(empty))
            assert code == 5 and "error: " in error
        bundle = tmp_path / "bundle"
        assert run(capsys, "export", f"{model}:tiny", "--out", str(bundle))[0] == 0
        weights = next(bundle.rglob("*.safetensors"))
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        code, _, error = run(capsys, "verify", str(bundle))
        assert code == 5 and weights.name in error

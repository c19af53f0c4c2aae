"""`optimize tune`: what it refuses before any work, what it writes, and how it ends."""

import json
from pathlib import Path

import pytest

from optimize.api import optimize
from optimize.cli import run_command
from optimize.commands.models import load_model
from optimize.recipes.recipe import Recipe

FILE = Path(__file__).parents[1] / "recipes" / "tuning" / "tiny_flow.py"
NOT_LOADED = "model.py:never"
"""Refused as soon as it is looked at, with another message than those below."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A MODEL argument: a copy, for the file itself is a module of the tests."""
    copy = tmp_path_factory.mktemp("model") / "tiny_flow_copy.py"
    copy.write_text(FILE.read_text())
    return f"{copy}:tiny"


@pytest.fixture(scope="session")
def found(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one search."""
    out = tmp_path_factory.mktemp("tune") / "found"
    options = ["--budget", "psnr=20", "--budget", "relative_error=0.5", "--trials", "10"]
    assert run_command(["tune", tiny, *options, "--out", str(out), "--samples", "2"]) == 0
    return out


def test_writes_recipe_report_and_numbers(found: Path, tiny: str) -> None:
    files = sorted(item.name for item in found.iterdir())
    assert files == ["recipe.yaml", "report.html", "tuned.json", "tuned.png"]
    data = json.loads((found / "tuned.json").read_text())
    assert data["model"] == tiny and data["limits"] == {"psnr": 20, "relative_error": 0.5}
    assert len(data["attempts"]) == 10 and data["chosen"] is not None
    assert len(data["measured"][0]["raw_seconds"]) >= 5
    assert "data:image/svg+xml" in (found / "report.html").read_text()


def test_recipe_says_where_it_comes_from_and_runs(found: Path, tiny: str) -> None:
    text = (found / "recipe.yaml").read_text()
    head = [line for line in text.splitlines() if line.startswith("# ")]
    assert head[0].startswith(f"# Found by `optimize tune {tiny}` on 20")
    assert "over the unoptimised program, both on onnx" in head[1]
    assert "dB to its results; on requests that the search did not see" in head[2]
    recipe = Recipe.load(found / "recipe.yaml")
    assert (recipe.budget.psnr, recipe.budget.relative_error) == (20, 0.5)
    loaded = load_model(tiny)
    # Raises where the budget is missed.
    optimize(
        loaded.model,
        recipe,
        example_inputs=loaded.example_inputs,
        loop=loaded.loop,  # type: ignore[arg-type]
        progress=False,
    )


def test_unreachable_budget_ends_with_one_and_leaves_the_report(
    capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "recipe.yaml").write_text("passes: []\n")
    options = ["--budget", "psnr=400", "--trials", "4", "--out", str(out), "--overwrite", "--json"]
    assert run_command(["tune", tiny, *options]) == 1
    captured = capsys.readouterr()
    error = " ".join(captured.err.split())
    assert "budget psnr=400: none of 4 trials holds it;" in error
    assert "comes nearest: psnr " in error and "ease the budget" in error
    assert json.loads(captured.out)["chosen"] is None
    assert not (out / "recipe.yaml").exists(), "of an earlier search"
    assert "No recipe was found" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--budget", "psn=30"], "unknown metric 'psn'; known metrics: psnr, relative_error, tok"),
        (["--budget", "psn=30"], "Did you mean psnr?"),
        (["--budget", "psnr"], "--budget psnr: expected NAME=VALUE, such as psnr=30"),
        (["--budget", "psnr=high"], "--budget psnr=high: found 'high', expected a number"),
        (["--budget", "psnr=-1"], "psnr: found -1.0, expected a finite number >= 0"),
        (["--budget", "psnr=nan"], "psnr: found nan, expected a finite number >= 0"),
        (["--budget", "psnr=1", "--budget", "psnr=2"], "found psnr a second time"),
        (["--budget", "token_match=2"], "token_match: found 2.0, expected a share in [0, 1]"),
        ([], "Missing option '--budget'"),
        (["--target", "onyx"], "unknown target 'onyx'; known targets: onnx, aoti"),
        (["--trials", "0"], "trials: found 0, expected a number in [1, 1000000]"),
        (["--minutes", "0"], "minutes: found 0.0, expected a number above 0"),
        (["--minutes", "nan"], "minutes: found nan, expected a number above 0"),
        (["--threads", "0"], "threads: found 0, expected a number in [1, 1024]"),
        (["--seed", "-1"], "seed: found -1, expected a number in [0, 2147483647]"),
        (["--start", "image-fat"], "unknown recipe 'image-fat'"),
        (["--storage", "{here}/notes.txt"], "notes.txt: found a file that is no journal"),
        (["--storage", "{here}"], "found a folder, expected a file"),
        (["--out", "{here}"], "found a folder with files in it; choose another, or pass --over"),
    ],
)
def test_refuses_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    expected: str,
) -> None:
    # Wide enough that no path is broken.
    monkeypatch.setenv("COLUMNS", "400")
    (tmp_path / "notes.txt").write_text("bread\n")
    given = [item.replace("{here}", str(tmp_path)) for item in options]
    if options and "--budget" not in options:
        given += ["--budget", "psnr=30"]
    if "--out" not in options:
        given += ["--out", str(tmp_path / "out")]
    assert run_command(["tune", NOT_LOADED, *given]) == 2
    captured = capsys.readouterr()
    error = " ".join(captured.err.replace("│", " ").split())
    assert expected in error and captured.out == ""
    assert not (tmp_path / "out").exists()


def test_a_storage_of_another_model_is_refused(
    capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path
) -> None:
    options = ["--budget", "psnr=300", "--trials", "1", "--storage", str(tmp_path / "study.log")]
    assert run_command(["tune", tiny, *options, "--out", str(tmp_path / "one")]) == 1
    other = tmp_path / "other.py"
    other.write_text(FILE.read_text())
    assert run_command(["tune", f"{other}:tiny", *options, "--out", str(tmp_path / "two")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "found a study of model" in error and "name another file" in error

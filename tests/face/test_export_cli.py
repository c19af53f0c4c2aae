"""`optimize export --layout`: what is written, from a model and from a bundle, and refusals."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from optimize.cli import run_command
from optimize.commands.export import model_name
from optimize.export.layouts import LAYOUTS, check_layout
from optimize.ir.errors import RecipeError

MODEL = """
import torch
from optimize.ir.denoise import DenoiseLoop

class Denoiser(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.out = torch.nn.Linear(4, 4)

    def forward(self, hidden_states, timestep):
        return self.out(hidden_states) + timestep[:, None] * 0.001

def make():
    torch.manual_seed(0)
    inputs = {"hidden_states": torch.randn(2, 4), "timestep": torch.ones(2)}
    return Denoiser().eval(), inputs, DenoiseLoop(steps=2)
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = run_command(["export", *(str(item) for item in arguments)])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


def test_a_bundle_becomes_a_model_repository(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "models"
    options = ("--name", "dit", "--device", "gpu", "--concurrency", "2", "--threads", "3")
    ask = (tiny_bundle, "--layout", "triton-server", "--out", out, *options)
    assert run(capsys, *ask)[:2] == (0, f"triton-server layout written to {out}\n")
    config = (out / "dit" / "config.pbtxt").read_text()
    assert "KIND_GPU" in config and 'key: "threads" value { string_value: "3" }' in config
    assert 'key: "concurrency" value { string_value: "2" }' in config
    code, _, error = run(capsys, *ask)
    assert code == 2 and "pass --overwrite" in error
    code, text, _ = run(capsys, *ask, "--overwrite", "--json")
    assert code == 0 and json.loads(text) == {"layout": "triton-server", "out": str(out)}


def test_a_model_becomes_a_model_repository(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    out = tmp_path / "models"
    code, _, error = run(
        capsys, f"{tmp_path / 'net.py'}:make", "--layout", "triton-server", "--out", out
    )
    assert code == 0, error
    assert (out / "net.py-make" / "1" / "bundle" / "manifest.json").is_file()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["models", "net.py"]


def test_the_browser_layout_gets_its_runtime(
    capsys: pytest.CaptureFixture[str],
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    module = types.ModuleType("optimize.export.browser")
    module.write_site = lambda *given, **options: calls.append((given, options))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    ask = (tiny_bundle, "--layout", "browser", "--out", tmp_path / "site")
    code, _, error = run(capsys, *ask)
    assert code == 2 and "layout browser: found no --ort-web, which it needs" in error
    assert run(capsys, *ask, "--ort-web", tmp_path)[0] == 0
    given = (tiny_bundle, tmp_path / "site")
    assert calls == [(given, {"overwrite": False, "runtime": tmp_path})]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layout", "triton"], "--layout triton: unknown, known: bundle, triton-server, browser"),
        (["--name", "x"], "--name: found it with layout bundle, which does not take it"),
        (
            ["--layout", "triton-server", "--ort-web", "x"],
            "--ort-web: found it with layout triton-server, which does not take it; leave it away, "
            "or pass --layout browser",
        ),
        (["--layout", "triton-server", "--stream"], "found no result growing step by step"),
        (["--layout", "triton-server", "--name", "a/b"], "name: found 'a/b'"),
        (["--layout", "triton-server", "--device", "tpu"], "device: found 'tpu'"),
        (["--layout", "triton-server", "--unroll", "2", "--loop", "unrolled"], "--loop: found it"),
        (["--layout", "triton-server", "--precision", "float16"], "--precision: found it with a"),
        ([], "MODEL: found a bundle, expected a model to make one from"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str],
    tiny_bundle: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    code, _, error = run(capsys, tiny_bundle, "--out", tmp_path / "out", *arguments)
    assert (code, list(tmp_path.iterdir())) == (2, []) and message in error, error


def test_every_option_of_a_layout_is_one_of_the_command() -> None:
    with pytest.raises(RecipeError, match="Did you mean browser"):
        check_layout("browsers", {})
    import inspect

    from optimize.commands.export import export

    taken = {name.replace("_", "-") for name in inspect.signature(export).parameters}
    for layout in LAYOUTS.values():
        assert set(layout.options) <= taken


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("zoo:digits-dit", "digits-dit"),
        ("org/some model", "some-model"),
        ("a/net.py:make", "net.py-make"),
        ("...", "model"),
    ],
)
def test_a_model_has_a_name(model: str, name: str) -> None:
    assert model_name(model) == name

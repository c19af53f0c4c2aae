"""What docs/serving.md shows works as it stands there."""

import re
import shlex
import shutil
from pathlib import Path

import onnxruntime as ort
import pytest

from optimize.cli import run_command

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_plain_onnx_runtime_opens_a_bundle_as_shown(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    (shown,) = blocks("python")
    exec(compile(shown, "docs/serving.md", "exec"), {})
    assert capsys.readouterr().out == "['step'] ['latent', 'timestep', 'change', 'labels']\n"
    assert ort.InferenceSession("bundle/graphs/step.onnx").get_outputs()[0].name == "latent_next"


def test_a_bundle_is_exported_as_shown(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    (command,) = [line for line in lines if line.startswith("optimize export bundle/")]
    assert run_command(shlex.split(command)[1:]) == 0
    listed = re.findall(r"^ {4}(models/\S+)", PAGE, re.MULTILINE)
    assert len(listed) == 4 and all((tmp_path / name).exists() for name in listed)

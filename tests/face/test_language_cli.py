"""A language model in a folder, from the first command to its answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimize.cli import run_command

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.capture.language_folder import save_tiny_llava

    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = run_command([str(item) for item in arguments])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


@pytest.mark.slow
def test_run_verify_generate_and_bench(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    from PIL import Image

    fast, plain = tmp_path / "fast", tmp_path / "plain"
    code, out, error = run(capsys, "run", folder, "--recipe", "vlm-fast", "--out", fast, "--json")
    assert code == 0, error
    (record,) = json.loads(out)["passes"]
    assert record["name"] == "prune_visual_tokens"
    code, out, error = run(capsys, "verify", fast, "--model", folder, "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "pass"), error
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    ask = ("generate", fast, "--prompt", "w7 w8", "--image", tmp_path / "picture.png")
    code, out, error = run(capsys, *ask, "--max-new-tokens", "4", "--json")
    answer = json.loads(out)
    assert code == 0 and 1 <= len(answer["tokens"]) <= 4, error
    code, out, _ = run(capsys, *ask, "--max-new-tokens", "4")
    assert (code, out) == (0, answer["text"] + "\n")
    assert run(capsys, "export", folder, "--out", plain)[0] == 0
    code, out, error = run(capsys, "bench", fast, plain, "--repeats", "2", "--at-least", "0")
    assert code in (0, 3) and "median per request" in out, error


def test_inspect_says_what_a_language_model_is(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    code, out, error = run(capsys, "inspect", folder)
    assert code == 0, error
    text = " ".join(out.split())
    assert "language model: 4 layers, 4 heads (2 of keys and values) of width 8" in text
    assert "image: 16 tokens, rows 2 to 17, grid 4 x 4 (rows x columns)" in text
    assert "prompt: 4 to 75 text tokens; answer: at most 37; cache: 512B per token" in text
    assert "prompts are put into 'w4 <image> {prompt} w5'" in text


def test_a_folder_of_neither_kind_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("")
    code, _, error = run(capsys, "export", tmp_path, "--out", tmp_path.parent / "never")
    assert code == 6
    assert "found a folder without model_index.json or config.json, expected a diffusers" in error

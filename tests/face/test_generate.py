"""`optimize generate`: text on standard output as it comes, or one JSON document."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimize.cli import run_command
from optimize.commands.generate import without_controls
from optimize.export.bundle import export_bundle
from optimize.runtime.image import save_png
from optimize.runtime.loop import Input
from tests.runtime import toy_language as toy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(export_bundle(toy.colours(), tmp_path_factory.mktemp("generate") / "b"))


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(export_bundle(toy.colours(picture=True), tmp_path_factory.mktemp("seeing") / "b"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, and standard error without line breaks."""
    code = run_command(["generate", *arguments, "--threads", "1"])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


def test_prints_the_answer_and_nothing_else(
    capsys: pytest.CaptureFixture[str], bundle: str
) -> None:
    assert run(capsys, bundle, "--prompt", "what colour") == (0, "it is red\n", "")


def test_pieces_appear_one_by_one(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        flushed: list[str] = []

        def flush(self) -> None:
            self.flushed.append(self.getvalue())

    monkeypatch.setattr(sys, "stdout", Terminal())
    assert run_command(["generate", bundle, "-p", "what colour", "--threads", "1"]) == 0
    assert Terminal.flushed[:3] == ["it", "it is", "it is red"]


def test_json_has_text_and_tokens(capsys: pytest.CaptureFixture[str], bundle: str) -> None:
    code, out, error = run(capsys, bundle, "-p", "what colour", "--json")
    data = json.loads(out)
    assert (code, error, data["text"], data["image"]) == (0, "", "it is red", None)
    assert [toy.WORDS[token] for token in data["tokens"]] == ["it", "is", "red", "</s>"]
    assert data["prompt"] == "what colour" and data["seconds"] > 0


def test_a_picture_comes_from_a_file(
    capsys: pytest.CaptureFixture[str], seeing: str, tmp_path: Path
) -> None:
    save_png(tmp_path / "white.png", np.full((40, 50, 3), 255, np.uint8))
    arguments = (seeing, "-p", "colour", "--image", str(tmp_path / "white.png"))
    assert run(capsys, *arguments) == (0, "it is blue\n", "")
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0 and json.loads(out)["image"].endswith("white.png")


def test_an_answer_may_be_limited_where_the_bundle_takes_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    program = toy.colours()
    limit = Input(name="max_new_tokens", dtype="int64", shape=(), default=8, low=1, high=8)
    fields = (*program.signature.inputs, limit)
    program = replace(program, signature=program.signature.model_copy(update={"inputs": fields}))
    limited = str(export_bundle(program, tmp_path / "b"))
    assert run(capsys, limited, "-p", "what", "--max-new-tokens", "5")[:2] == (0, "no\n")
    code, out, error = run(capsys, limited, "-p", "what", "--max-new-tokens", "9")
    assert (code, out) == (2, "") and "max_new_tokens: found values in [9, 9]" in error


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["-p", ""], 2, "prompt: found '', expected some text"),
        (["-p", "x", "--image", "x.png"], 2, "image: found one, expected none"),
        (["-p", "x", "--max-new-tokens", "3"], 2, "--max-new-tokens: found no such field in the"),
        (["-p", "red " * 20], 2, "found 21 tokens with the template, expected at most 10"),
        ([], 2, "Missing option '--prompt'"),
    ],
)
def test_errors_are_one_message(
    capsys: pytest.CaptureFixture[str], bundle: str, arguments: list[str], code: int, expected: str
) -> None:
    found, out, error = run(capsys, bundle, *arguments)
    assert (found, out) == (code, "")
    assert expected in error.replace("│ ", "") and "Traceback" not in error


def test_other_bundles_take_no_prompt(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path
) -> None:
    code, out, error = run(capsys, str(tiny_bundle), "-p", "x")
    assert (code, out) == (2, "") and "there is no tokenizer here" in error
    assert run(capsys, str(tmp_path / "missing"), "-p", "x")[0] == 5


def test_inspect_shows_how_to_prompt(
    capsys: pytest.CaptureFixture[str], bundle: str, seeing: str
) -> None:
    assert run_command(["inspect", bundle]) == 0
    assert "prompts: 'Q {prompt}', at most 10 tokens\n" in capsys.readouterr().out
    assert run_command(["inspect", seeing]) == 0
    assert "at most 10 tokens and a picture of 6 x 4 pixels" in capsys.readouterr().out


def test_text_for_a_terminal_cannot_steer_it() -> None:
    assert without_controls("a\n\tb\x1b[31m\r\x9b猫") == "a\n\tb\ufffd[31m\ufffd\ufffd猫"


def test_needs_no_pytorch(bundle: str) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from optimize.cli import run_command\n"
        "sys.exit(run_command(['generate', sys.argv[1], '-p', 'what', '--threads', '1']))"
    )
    done: Any = subprocess.run(
        [sys.executable, "-c", code, bundle], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (0, "no\n"), done.stderr

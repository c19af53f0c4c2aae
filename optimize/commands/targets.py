"""Something that answers requests: a bundle on disk, or a model in PyTorch."""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimize.commands.models import load_model
from optimize.ir.errors import RecipeError
from optimize.report.whole_file import write_whole
from optimize.runtime.errors import ResourceError

Answer = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True)
class Target:
    """What is timed: its name, how it runs, and how to ask it."""

    name: str
    engine: str
    answer: Answer
    signature: Any
    loop: Any
    examples: Mapping[str, Any]


def open_target(text: str, threads: int | None = None) -> Target:
    """A bundle folder, or a MODEL argument captured without any pass.

    Raises:
        BundleError: the folder is no good bundle.
        RecipeError: there is neither a folder nor a model of this name.
    """
    if looks_like_bundle(text):
        from optimize.runtime.session import load

        session = load(text, threads=threads)
        return Target(text, "onnx", session, session.signature, session.manifest.loop, {})
    loaded = load_model(text)
    import torch

    from optimize.capture.capture_model import capture_model

    if threads is not None:
        torch.set_num_threads(threads)
    program = capture_model(loaded.model, loaded.example_inputs, loop=loaded.loop)
    examples = dict(loaded.example_inputs or {})
    return Target(text, "torch", program, program.signature, program.loop, examples)


def looks_like_bundle(text: str) -> bool:
    """Whether the argument is a folder that is no model of diffusers or transformers."""
    path = Path(text)
    if not path.is_dir() or (path / "manifest.json").exists():
        return path.is_dir()
    return not any((path / name).exists() for name in ("model_index.json", "config.json"))


def check_out(out: Path, overwrite: bool, *inputs: str) -> None:
    """Refuses an output folder before the expensive work starts; makes the folder it goes into.

    Raises:
        RecipeError: empty, `-`, inside an input, or already there.
        ResourceError: the folder it goes into cannot be made or written.
    """
    text = str(out)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecipeError(f"--out {text!r}: found a name that is not UTF-8") from error
    if text in ("", ".", "-", "/") or "\0" in text:
        raise RecipeError(f"--out {text!r}: expected the path of a new folder")
    resolved = out.resolve()
    for item in inputs:
        source = Path(item.rpartition(":")[0] if item.endswith(".py") else item)
        if source.is_dir() and resolved.is_relative_to(source.resolve()):
            raise RecipeError(f"--out {text}: lies inside the input {item}; choose another folder")
    if resolved.is_file():
        raise RecipeError(f"--out {text}: found a file, expected the path of a new folder")
    if resolved.is_dir() and any(resolved.iterdir()) and not overwrite:
        raise RecipeError(
            f"--out {text}: found a folder with files in it; choose another, or pass --overwrite"
        )
    try:
        resolved.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"--out {text}: cannot be made: {error.strerror}") from error
    if not os.access(resolved.parent, os.W_OK | os.X_OK):
        raise ResourceError(f"--out {text}: {resolved.parent} cannot be written; choose another")


def make_folder(out: Path) -> None:
    """Makes an output folder where there is none.

    Raises:
        ResourceError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"--out {out}: cannot be made: {error.strerror}") from error


def write_files(out: Path, files: Mapping[str, bytes]) -> None:
    """Writes files into an output folder, each whole or not at all.

    Raises:
        ResourceError: one cannot be written.
    """
    make_folder(out)
    for name, content in files.items():
        write_whole(out / name, content)


def session_measure(request: Mapping[str, Any], repeats: int = 3) -> Callable[[Any], float]:
    """Measures programs on ONNX Runtime: the fastest of a few runs of one request, in seconds."""

    def measure(program: Any) -> float:
        import time

        from optimize.ir.program import as_arrays
        from optimize.runtime.session import load

        with tempfile.TemporaryDirectory() as folder:
            program.export(Path(folder) / "bundle")
            with load(Path(folder) / "bundle") as session:
                fields = as_arrays(request)
                session(**fields)
                seconds = []
                for _ in range(repeats):
                    start = time.perf_counter()
                    session(**fields)
                    seconds.append(time.perf_counter() - start)
        return min(seconds)

    return measure

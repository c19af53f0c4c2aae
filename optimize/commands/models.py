"""What a MODEL argument may be: of the zoo, a pipeline, a language model, a function in a file."""

import difflib
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optimize.ir.decode import DecodeLoop
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.errors import InputModelError, RecipeError
from optimize.ir.torus_flow import TorusFlowLoop
from optimize.ir.unmask import UnmaskLoop
from optimize.measure.quality import Interval

ZOO = (
    "arithmetic",
    "digits-dit",
    "digits-dit-epsilon",
    "digits-dit-v",
    "digits-restore",
    "find-the-digit",
    "long-sums",
    "masked-shakespeare",
    "moving-digits",
    "shakespeare",
    "torus-crystals",
)
KNOWN_ZOO = ", ".join(f"zoo:{name}" for name in ZOO)
HELP = (
    f"{KNOWN_ZOO}, a diffusers pipeline or a transformers language model (folder or hub id), or "
    "path/to/file.py:function, where function() returns (module, example_inputs, loop)."
)


class Judge(Protocol):
    """Judges the samples of a model as a set, and says what to sample for it."""

    def fields(self, first: int, count: int) -> Mapping[str, Any]:
        """The request fields of `count` samples, from number `first` on."""
        ...

    def frechet(self, samples: Any) -> Interval:
        """Fréchet distance of an array of samples [B, ...] to real ones, with its interval."""
        ...


@dataclass(frozen=True)
class LoadedModel:
    """A model with what `optimize` needs besides; few models have a judge."""

    name: str
    model: Any
    example_inputs: Mapping[str, Any] | None = None
    loop: DenoiseLoop | TorusFlowLoop | DecodeLoop | UnmaskLoop | None = None
    judge: Judge | None = None


def load_model(text: str) -> LoadedModel:
    """Loads a MODEL argument.

    Raises:
        RecipeError: the argument names nothing.
        InputModelError: what it names is no model.
        ResourceError: a package or a download is missing.
    """
    if text.startswith("zoo:"):
        return _from_zoo(text)
    file, colon, function = text.rpartition(":")
    if colon and file.endswith(".py"):
        return _from_file(Path(file), function)
    if text.endswith(".py"):
        raise RecipeError(f"model {text}: found no function, expected {text}:function")
    return _from_library(text)


def _from_zoo(text: str) -> LoadedModel:
    name = text.removeprefix("zoo:")
    if name not in ZOO:
        close = difflib.get_close_matches(name, ZOO, n=1, cutoff=0.3)
        hint = f". Did you mean zoo:{close[0]}?" if close else ""
        raise RecipeError(f"unknown model {text!r}; known zoo models: {KNOWN_ZOO}{hint}")
    # A zoo model brings its weights; each is imported when asked for.
    from optimize.commands.zoo import LOADERS

    return LOADERS[name](text)


def _from_file(path: Path, function: str) -> LoadedModel:
    if not path.is_file():
        raise RecipeError(f"model {path}:{function}: found no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    make = getattr(module, function, None)
    if not callable(make):
        names = [name for name, item in vars(module).items() if callable(item) and name[0] != "_"]
        close = difflib.get_close_matches(function, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise RecipeError(f"model {path}: found no function {function!r}{hint}")
    made = make()
    if not isinstance(made, tuple) or len(made) != 3:
        found = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
        raise InputModelError(
            f"model {path}:{function}: returned {found}, expected (module, example_inputs, loop)"
        )
    model, example_inputs, loop = made
    known = DenoiseLoop | TorusFlowLoop | DecodeLoop | UnmaskLoop
    if loop is not None and not isinstance(loop, known):
        raise InputModelError(
            f"model {path}:{function}: found loop {type(loop).__name__}, expected a DenoiseLoop, "
            "a TorusFlowLoop, a DecodeLoop or an UnmaskLoop"
        )
    return LoadedModel(f"{path.stem}:{function}", model, example_inputs, loop)


def _from_library(text: str) -> LoadedModel:
    """A pipeline or a language model, from a folder or the hub."""
    folder = Path(text).expanduser()
    looks_local = folder.exists() or text.startswith((".", "/", "~"))
    if not looks_local and text.count("/") != 1:
        raise RecipeError(f"unknown model {text!r}; expected {HELP}")
    if not looks_local and os.environ.get("HF_HUB_OFFLINE") != "1":
        os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "30")
    names = ("model_index.json", "config.json")
    files = [name for name in names if (folder / name).is_file()]
    if folder.is_dir() and not files:
        raise InputModelError(
            f"model {text}: found a folder without {' or '.join(names)}, expected a diffusers "
            "pipeline or a transformers model; save it with save_pretrained(folder)"
        )
    speaks = files == ["config.json"] if looks_local else _is_language_model_on_hub(text)
    # PyTorch is imported when a model is loaded, not by every command.
    if speaks:
        from optimize.capture.load_language_model import load_language_model

        if looks_local:
            _hide_loading_bars()
        return LoadedModel(text, load_language_model(folder if looks_local else text))
    from optimize.capture.from_diffusers import load_pipeline

    return LoadedModel(text, load_pipeline(text))


def _hide_loading_bars() -> None:
    """Keeps the library's bars from between the lines of a command; downloads have theirs."""
    try:
        from transformers.utils import logging
    except ImportError:
        return
    logging.disable_progress_bar()


def _is_language_model_on_hub(text: str) -> bool:
    """Whether a hub id is known to be no pipeline; False where that cannot be found out."""
    try:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        return False
    try:
        hf_hub_download(text, "model_index.json")
    except LocalEntryNotFoundError:
        return isinstance(try_to_load_from_cache(text, "config.json"), str)
    except EntryNotFoundError:
        return True
    # No such model, no network, a wrong name: loading says what it is.
    except (OSError, ValueError):
        return False
    return False

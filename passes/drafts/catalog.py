"""Every draft by its recipe name."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from optimize.capture.from_transformers import capture_language_model
from optimize.ir.decode import PROMPT_POSITIONS, DecodeLoop
from optimize.ir.decoder_rows import site_count, with_prefix
from optimize.ir.errors import InputModelError
from optimize.ir.fewer_layers import with_fewer_layers
from optimize.ir.program import Program
from optimize.passes.drafts.chimera_draft import ChimeraDraft
from optimize.passes.drafts.draft_base import Draft
from optimize.passes.drafts.model_draft import ModelDraft
from optimize.passes.drafts.prompt_lookup import PromptLookup
from optimize.passes.pass_base import Declined

DraftKind = Literal["model", "chimera", "layers", "lookup"]

Loader = Callable[[str, DecodeLoop], Program | Path]
"""(name without its prefix, the target's loop) → a draft's program, or the file of a Chimera."""

_LOADERS: dict[str, Loader] = {}
_PROGRAMS: dict[str, Program] = {}
_CAPTURED: dict[tuple[str, DecodeLoop], Program] = {}


def register_draft(name: str, program: Program) -> None:
    """Makes a captured program a source of drafts, besides folders and hub ids.

    Args:
        name: what `source` of the pass `attach_draft` then says.
        program: one that generates tokens; it is used as it is.
    """
    _PROGRAMS[name] = program


def register_loader(prefix: str, loader: Loader) -> None:
    """Makes every source that begins with a prefix, such as "zoo:", be loaded by a function."""
    _LOADERS[prefix] = loader


def draft_of(
    kind: DraftKind, program: Program, source: str | None, layers: int | None, ngram: int
) -> Draft:
    """The draft that the options of a pass name.

    Raises:
        Declined: it cannot draft for the program.
    """
    if kind == "lookup":
        return PromptLookup(ngram)
    if kind == "layers":
        return _layers(program, layers)
    assert source is not None
    assert program.decoding is not None
    if kind == "chimera":
        return ChimeraDraft(file_of(source, program.decoding.loop))
    return _model(program, source)


def _loaded(source: str, loop: DecodeLoop) -> Program | Path | None:
    """What the loader of a source's prefix has; None without one."""
    for prefix, loader in _LOADERS.items():
        if source.startswith(prefix):
            return loader(source[len(prefix) :], loop)
    return None


def file_of(source: str, loop: DecodeLoop) -> Path:
    """The file that a source names.

    Raises:
        Declined: it names a model.
    """
    found = _loaded(source, loop) or Path(source)
    if not isinstance(found, Path):
        raise Declined(f"{source}: found a model, expected a file")
    return found


def captured_source(source: str, loop: DecodeLoop) -> Program:
    """The program of a source; captured once."""
    if source in _PROGRAMS:
        return _PROGRAMS[source]
    if (source, loop) not in _CAPTURED:
        found = _loaded(source, loop)
        if isinstance(found, Path):
            raise Declined(f"{source}: found a file, expected a model")
        _CAPTURED[source, loop] = found or capture_language_model(source, loop=loop)
    return _CAPTURED[source, loop]


def _layers(program: Program, layers: int | None) -> ModelDraft:
    decoder, decoding = program.decoder, program.decoding
    assert decoder is not None and decoding is not None
    if decoding.image_tokens:
        raise Declined("the target's layers read text only as a draft; these prompts have an image")
    _check_positions(program, "target")
    whole = site_count(decoder)
    count = max(1, whole // 4) if layers is None else layers
    try:
        smaller = with_fewer_layers(decoder, count)
    except InputModelError as error:
        raise Declined(str(error)) from error
    details = {"layers": count, "of": whole}
    return ModelDraft(smaller, position_shift=decoding.position_shift, details=details)


def _model(program: Program, source: str) -> ModelDraft:
    decoding = program.decoding
    assert decoding is not None
    draft = captured_source(source, decoding.loop)
    own = draft.decoding
    if draft.decoder is None or own is None:
        raise Declined(f"{source}: found a program that does not generate tokens")
    if own.vocabulary != decoding.vocabulary:
        raise Declined(
            f"{source}: found a vocabulary of {own.vocabulary} tokens, expected "
            f"{decoding.vocabulary} as the target has; a draft must share its tokenizer"
        )
    if (
        tokenizer_of(draft) not in (None, tokenizer_of(program))
        and tokenizer_of(program) is not None
    ):
        raise Declined(
            f"{source}: found another tokenizer than the target's, expected the same: equal "
            "numbers must mean equal tokens"
        )
    if own.image_tokens:
        raise Declined(f"{source}: found a draft that reads images, expected one of text alone")
    needed = decoding.loop.rows(0)
    if own.capacity < needed:
        raise Declined(
            f"{source}: found a draft for texts of {own.capacity} tokens, expected at least "
            f"{needed} as the target is captured for"
        )
    _check_positions(draft, source)
    theirs, ours = decoder_parameters(program), decoder_parameters(draft)
    if ours >= theirs:
        raise Declined(
            f"{source}: found {ours} parameters, expected fewer than the target's {theirs}: a "
            "draft that costs as much as the target cannot save time"
        )
    prefix = "draft."
    decoder = with_prefix(draft.decoder, prefix)
    weights = {name: draft.weights[name[len(prefix) :]] for name in decoder.weights.values()}
    details = {"source": source, "parameters": ours}
    return ModelDraft(decoder, weights, own.position_shift, details)


def decoder_parameters(program: Program) -> int:
    """How many numbers the weights of a program's decoder are."""
    assert program.decoder is not None
    names = set(program.decoder.weights.values())
    return sum(program.weights[name].numel() for name in names)


def tokenizer_of(program: Program) -> bytes | None:
    """The content of a program's tokenizer; None where it reads tokens only."""
    if program.prompting is None:
        return None
    return program.assets.get(program.prompting.tokenizer)


def _check_positions(program: Program, name: str) -> None:
    """Whether rows stand at consecutive positions, as those of a text do."""
    assert program.decoding is not None
    names = [item for item in program.weights if item.startswith(PROMPT_POSITIONS)]
    for table in (program.weights[item] for item in names):
        expected = np.arange(table.shape[-1]) + program.decoding.position_shift
        if not np.array_equal(np.broadcast_to(expected, table.shape), table.numpy()):
            raise Declined(f"{name}: found prompts at positions of their own, expected consecutive")

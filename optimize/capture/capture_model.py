"""Captures whatever it is given: a pipeline, a language model, or a module and its loop."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from optimize.capture.from_decoder import capture_decoder
from optimize.capture.from_denoiser import capture
from optimize.capture.from_diffusers import capture_pipeline, is_pipeline
from optimize.capture.from_masked import capture_masked_model
from optimize.capture.from_torus_flow import capture_torus_flow
from optimize.capture.from_transformers import capture_language_model
from optimize.capture.load_language_model import LoadedLanguageModel
from optimize.ir.decode import DecodeLoop
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.errors import InputModelError
from optimize.ir.program import Program
from optimize.ir.torus_flow import TorusFlowLoop
from optimize.ir.unmask import UnmaskLoop

AnyLoop = DenoiseLoop | TorusFlowLoop | DecodeLoop | UnmaskLoop
PARTS = ("decoder", "vision", "image_shape")
"""What a model has that `capture_decoder` takes as it is."""


def capture_model(
    model: Any,
    example_inputs: Mapping[str, Any] | None = None,
    *,
    loop: AnyLoop | None = None,
) -> Program:
    """Captures a model, whichever it is; a program stays as it is.

    Args:
        model: a module that denoises, a diffusers pipeline or a transformers language model, the
            folder of one of these two, or an object with `decoder`, `vision` and `image_shape`.
        example_inputs: of a module, argument name → tensor; of a language model, request fields.
        loop: how it is sampled; an `UnmaskLoop` for what fills in masked text. Pipelines bring
            their own, transformers models need none.
    Raises:
        InputModelError: as the capture of its kind; or a loop that does not fit the model.
    """
    found = "no loop" if loop is None else f"a {type(loop).__name__}"
    if isinstance(model, Program):
        if loop is not None:
            raise InputModelError(
                f"loop: found {found} for a program, which brings its own; leave `loop` away"
            )
        return model
    if is_pipeline(model) or _is_folder_with(model, "model_index.json"):
        if loop is not None:
            raise InputModelError(
                f"loop: found {found} for a pipeline, which brings its own; call optimize.capture."
                "from_diffusers.capture_pipeline(pipeline, steps=...) and pass the program"
            )
        return capture_pipeline(model)
    if isinstance(loop, UnmaskLoop):
        # Also of transformers: what fills in masks has no loop of the library's own.
        return capture_masked_model(model, example_inputs, loop=loop)
    if is_language_model(model, example_inputs, loop):
        if loop is not None and not isinstance(loop, DecodeLoop):
            raise InputModelError(
                f"loop: found {found} for a language model, expected a DecodeLoop, or none"
            )
        return _checked(capture_language_model(model, loop=loop), example_inputs)
    has_parts = all(hasattr(model, name) for name in PARTS)
    if isinstance(loop, DecodeLoop):
        if not has_parts:
            raise InputModelError(
                f"loop: found a DecodeLoop for {_kind(model)}, expected a transformers language "
                f"model, or an object with {', '.join(PARTS)}; "
                "optimize.capture.from_decoder.LanguageModel says what they are"
            )
        return _checked(capture_decoder(model, loop), example_inputs)
    if has_parts and loop is None and example_inputs is None:
        raise InputModelError(
            f"loop: found none for {_kind(model)}, which has {', '.join(PARTS)}, expected a "
            "DecodeLoop; pass loop=DecodeLoop(...)"
        )
    if isinstance(loop, TorusFlowLoop):
        return capture_torus_flow(model, example_inputs, loop)
    return capture(model, example_inputs, loop=loop)


def is_language_model(
    model: Any, example_inputs: Mapping[str, Any] | None = None, loop: AnyLoop | None = None
) -> bool:
    """Whether something is a transformers language model or its folder.

    Does not import transformers. A model without a head is one, too, unless there is something
    that makes it a denoiser: to be told what is missing is better than to be asked for inputs.
    """
    if isinstance(model, LoadedLanguageModel):
        return True
    if _is_folder_with(model, "config.json"):
        return not _is_folder_with(model, "model_index.json")
    names = {kind.__name__ for kind in type(model).__mro__}
    if "PreTrainedModel" not in names or not isinstance(model, nn.Module):
        return False
    bare = example_inputs is None and loop is None
    return "GenerationMixin" in names or isinstance(loop, DecodeLoop) or bare


def _is_folder_with(model: Any, file: str) -> bool:
    if not isinstance(model, (str, os.PathLike)):
        return False
    return (Path(model).expanduser() / file).is_file()


def _kind(model: Any) -> str:
    return f"the path {str(model)!r}" if isinstance(model, str) else type(model).__name__


def _checked(program: Program, examples: Mapping[str, Any] | None) -> Program:
    """The program, whose requests may have these fields."""
    fields = [item.name for item in program.signature.inputs]
    for name in examples or {}:
        if name not in fields:
            raise InputModelError(
                f"example_inputs: found {name!r}, expected some of {', '.join(fields)}: of a "
                "language model they are request fields"
            )
    return program

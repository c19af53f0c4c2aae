"""Drafts and energies of the zoo, as sources of passes: `source: zoo:shakespeare-draft`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from optimize.capture.from_decoder import Parts, capture_decoder
from optimize.ir.decode import DecodeLoop
from optimize.ir.errors import InputModelError
from optimize.ir.program import Program
from optimize.recipes.zoo.arithmetic import load_arithmetic_draft
from optimize.recipes.zoo.rotary_language_model import RotaryLanguageModel
from optimize.recipes.zoo.shakespeare import load_shakespeare, load_shakespeare_draft

MODELS: dict[str, Callable[[], RotaryLanguageModel]] = {
    "arithmetic-draft": load_arithmetic_draft,
    "shakespeare": load_shakespeare,
    "shakespeare-draft": load_shakespeare_draft,
}
FILES = {
    "arithmetic-judge": Path(__file__).with_name("arithmetic_judge.safetensors"),
    "masked-shakespeare-energy": Path(__file__).with_name("masked_shakespeare_energy.safetensors"),
    "shakespeare-chimera": Path(__file__).with_name("shakespeare_chimera.safetensors"),
}


def load_zoo_draft(name: str, loop: DecodeLoop) -> Program | Path:
    """A draft by its name without "zoo:": captured for a target's loop, or the file of a head.

    Raises:
        InputModelError: there is none of the name.
    """
    if name in FILES:
        return FILES[name]
    if name not in MODELS:
        known = ", ".join(f"zoo:{item}" for item in sorted({*MODELS, *FILES}))
        raise InputModelError(f"source: found zoo:{name}, expected one of {known}")
    return capture_decoder(Parts(MODELS[name]()), loop)

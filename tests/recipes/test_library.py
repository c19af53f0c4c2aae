"""Every recipe that ships builds on a tiny model, and what it builds runs."""

import pytest
import torch

from optimize.api import apply_recipe
from optimize.capture.from_decoder import capture_decoder
from optimize.capture.from_masked import capture_masked_model
from optimize.ir.decode import DecodeLoop
from optimize.ir.program import Program
from optimize.ir.unmask import Remasking, UnmaskLoop
from optimize.passes.calibration import requests
from optimize.recipes.recipe import Recipe, names
from optimize.recipes.zoo.masked_language_model import MaskedLanguageModel
from optimize.recipes.zoo.tiny_decoder import tiny_model
from tests.passes.tiny_llava import llava_program
from tests.passes.tiny_video import tiny_video


def program_for(name: str) -> Program:
    """A program of the kind that a recipe is for."""
    if name.startswith("llm-"):
        return capture_decoder(tiny_model(dtype=torch.float32), DecodeLoop(32, 16))
    if name.startswith("masked-"):
        return masked_program("random")
    return llava_program() if name.startswith("vlm-") else tiny_video(steps=12)


def masked_program(remasking: Remasking) -> Program:
    """A tiny model that fills in eight masks of ten tokens."""
    model = MaskedLanguageModel(10, dim=8, block_count=1, head_count=2, hidden=8).eval()
    return capture_masked_model(model, loop=UnmaskLoop(10, 8, remasking=remasking, max_prompt=0))


@pytest.mark.parametrize("name", names())
def test_builds_on_a_tiny_model_and_runs(name: str) -> None:
    recipe, before = Recipe.load(name), program_for(name)
    after = apply_recipe(before, recipe, verify=False)
    applied = {record.name for record in after.history if record.declined is None}
    assert applied >= {entry.item.name for entry in recipe.passes if not entry.optional}
    (request,) = requests(before)
    for result in after(**request).values():
        assert torch.isfinite(result).all()


def test_the_vision_language_recipe_keeps_fewer_image_tokens_in_later_layers() -> None:
    recipe = Recipe.load("vlm-fast")
    after = apply_recipe(llava_program(), recipe)
    (record,) = after.history
    assert record.details["cuts"] == [1, 2] and record.details["image_tokens"] == 16
    first, second = record.details["kept_at_most"]
    assert 16 > first > second >= 1
    assert record.oracles["identity"] == 0.0
    assert 0.0 <= record.details["token_match"] <= 1.0
    assert record.flops_after < record.flops_before


def test_the_language_recipe_attaches_what_pays_and_says_why_not() -> None:
    before = capture_decoder(tiny_model(dtype=torch.float32), DecodeLoop(32, 16))
    after = apply_recipe(before, Recipe.load("llm-fast"))
    (record,) = after.history
    assert record.declined is None or "does not pay" in record.declined


@pytest.mark.parametrize(
    ("remasking", "applied", "declined"),
    [
        ("ancestral", "first_hitting", "computes no logits of the answer"),
        ("low_confidence", "commit_early", "fills in first what the model is sure of"),
    ],
)
def test_the_masked_recipe_uses_the_pass_that_fits_the_order(
    remasking: Remasking, applied: str, declined: str
) -> None:
    after = apply_recipe(masked_program(remasking), Recipe.load("masked-fast"), verify=False)
    assert [item.name for item in after.history if item.declined is None] == [applied]
    (reason,) = [item.declined for item in after.history if item.declined is not None]
    assert declined in reason

"""`optimize()` in one call, and the names of the package."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import optimize as package
from optimize.api import apply_recipe, optimize
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.errors import InputModelError, QualityError, RecipeError
from optimize.ir.program import Program
from optimize.ir.record import Record
from optimize.recipes.budget import check_budget
from optimize.recipes.recipe import Budget, Recipe

ROOT = Path(__file__).parents[2]


class Denoiser(nn.Module):
    """Any module that takes a latent and a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, latent: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(latent)) * (1 + 0.001 * time[:, None])


INPUTS = {"latent": torch.zeros(2, 4), "time": torch.zeros(2)}
LOOP = DenoiseLoop(latent="latent", timestep="time", steps=6)


def fused(**options: object) -> dict[str, object]:
    return {"passes": [{"fuse_solver": options}]}


def run(recipe: object, **options: object) -> Program:
    torch.manual_seed(0)
    model = Denoiser().eval()
    return optimize(model, recipe, example_inputs=INPUTS, loop=LOOP, progress=False, **options)  # type: ignore[arg-type]


def test_one_call_from_module_to_program() -> None:
    program = run(fused())
    (record,) = program.history
    assert record.name == "fuse_solver" and record.error == 0.0
    assert program(seed=1)["latent"].shape == (1, 4)
    assert program.report.to_dict()["passes"][0]["sites"] == ["step"]


def test_budget_is_checked_after_the_last_pass() -> None:
    assert run(fused(steps=2), budget={"psnr": 1}).history[0].error
    with pytest.raises(QualityError, match="after fuse_solver: relative_error"):
        run(fused(steps=2), budget={"psnr": 300})
    with pytest.raises(QualityError, match="relative_error .*expected at most 1e-12"):
        run(fused(steps=2), budget=Budget(relative_error=1e-12))
    run(fused(), budget={"psnr": 300, "relative_error": 0})


def test_budget_of_tokens() -> None:
    budget = Budget(token_match=0.9)
    record = Record("prune_visual_tokens", {}, ("prefill",), error=0.2)
    check_budget("recipe", budget, [replace(record, details={"token_match": 0.9})])
    with pytest.raises(QualityError, match="found token_match 0.75, expected at least 0.9. after"):
        check_budget("recipe", budget, [replace(record, details={"token_match": 0.75})])
    with pytest.raises(QualityError, match="no generated tokens, expected some for token_match"):
        check_budget("recipe", budget, [record])
    with pytest.raises(RecipeError, match=r"token_match: found 2.*expected a share in \[0, 1\]"):
        run(fused(), budget={"token_match": 2})


def test_wrong_budget_is_a_recipe_error() -> None:
    with pytest.raises(RecipeError, match=r"recipe.budget.psn: budget: unknown option 'psn'"):
        run(fused(), budget={"psn": 3})


def test_budget_without_verification_is_said_to_be_unchecked() -> None:
    program = run(fused(steps=2), budget={"psnr": 300}, verify=False)
    assert program.history[0].error is None
    assert "was not checked" in program.report.notes[-1]


def test_programs_can_be_optimised_again(toy_program: Program) -> None:
    after = optimize(toy_program, fused(), progress=False)
    assert [record.name for record in after.history] == ["fuse_solver"]


def test_nothing_is_traced_when_the_recipe_is_wrong() -> None:
    with pytest.raises(RecipeError, match="unknown pass 'fuse_solvr'"):
        optimize("not even a model", {"passes": ["fuse_solvr"]})
    with pytest.raises(InputModelError, match="model: found str"):
        optimize("not even a model", fused())


def test_optional_pass_that_does_not_pay_is_dropped(toy_program: Program) -> None:
    recipe = Recipe.load({"passes": [{"fuse_solver": {"steps": 2, "optional": True}}]})
    seconds = iter([1.0, 2.0])
    after = apply_recipe(toy_program, recipe, measure=lambda program: next(seconds))
    assert "does not pay on the measured target" in str(after.history[0].declined)
    assert replace(after, history=()).loop == toy_program.loop


def test_progress_can_be_a_function() -> None:
    told: list[str] = []

    def tell(stage: str, done: int, total: int) -> None:
        told.append(stage)

    torch.manual_seed(0)
    optimize(Denoiser().eval(), fused(), example_inputs=INPUTS, loop=LOOP, progress=tell)
    assert told[0] == "reference" and "fuse_solver: rewrite" in told


def test_unknown_target_is_named(toy_program: Program) -> None:
    with pytest.raises(RecipeError, match="unknown target 'onxx'; known targets: onnx"):
        toy_program.export("somewhere", target="onxx")


def test_public_names_exist_and_load_nothing_early() -> None:
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        package.optimise  # noqa: B018
    script = (
        "import sys, optimize\n"
        "heavy = {'torch', 'onnxruntime', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_recipes_load_before_any_model_is_captured() -> None:
    """In a process of its own, where no capture has registered our ops."""
    script = "from optimize.recipes.recipe import Recipe\nRecipe.load('vlm-fast')"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)

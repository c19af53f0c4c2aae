"""Recipes: every problem at once, with its place and the nearest valid name."""

from collections import UserDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pytest

from optimize.ir.errors import RecipeError
from optimize.ir.program import Program
from optimize.passes.calibration import Calibration
from optimize.passes.pass_base import Numerics, Pass, Rewritten
from optimize.recipes.recipe import Budget, Recipe, names


@dataclass(frozen=True)
class CacheRegions(Pass):
    """Stands for the real one: the recipe only looks at names and fields."""

    numerics: ClassVar[Numerics] = "approximate"

    keep_ratio: float
    schedule: tuple[int, ...] = ()
    report: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio: found {self.keep_ratio}, expected a number in (0, 1]")

    def declines(self, program: Program) -> str | None:
        return None

    def rewrite(self, program: Program) -> Rewritten:
        return Rewritten(program, ())

    def identity(self) -> Self:
        return self


@dataclass(frozen=True)
class FuseSolver(Pass):
    """Stands for the real one."""

    numerics: ClassVar[Numerics] = "approximate"

    solver: Literal["euler", "dpm-solver-pp"] = "euler"
    steps: int | None = None

    def declines(self, program: Program) -> str | None:
        return None

    def rewrite(self, program: Program) -> Rewritten:
        return Rewritten(program, ())

    def identity(self) -> Self:
        return self


CacheRegions.name, FuseSolver.name = "cache_regions", "fuse_solver"
PASSES: Mapping[str, type[Pass]] = {"cache_regions": CacheRegions, "fuse_solver": FuseSolver}


def load(source: Any) -> Recipe:
    return Recipe.load(source, passes=PASSES)


def from_yaml(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return load(path)


def problems_of(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        from_yaml(tmp_path, text)
    first, *rest = str(caught.value).splitlines()
    return [line.strip() for line in rest] or [first.removeprefix("recipe r: ")]


FULL = """
passes:
  - cache_regions:
      keep_ratio: 5e-1
      schedule: [0, 4]
      optional: true
  - fuse_solver
budget: {psnr: 25}
target: onnx
calibration: {samples: 2, inputs: {class_labels: [1, 2]}}
"""


def test_loads_yaml(tmp_path: Path) -> None:
    recipe = from_yaml(tmp_path, FULL)
    first, second = recipe.passes
    assert first.item == CacheRegions(keep_ratio=0.5, schedule=(0, 4)) and first.optional
    assert second.item == FuseSolver() and not second.optional
    assert recipe.budget == Budget(psnr=25.0)
    assert recipe.calibration == Calibration(samples=2, inputs={"class_labels": [1, 2]})
    assert recipe.name == "r"


def test_round_trips_through_dict_and_yaml(tmp_path: Path) -> None:
    recipe = from_yaml(tmp_path, FULL)
    again = load(recipe.to_dict())
    assert again.passes == recipe.passes and again.to_dict() == recipe.to_dict()
    assert from_yaml(tmp_path, recipe.to_yaml()) == recipe


def test_accepts_recipes_and_any_mapping() -> None:
    recipe = load(UserDict(passes=[UserDict(fuse_solver=UserDict(steps=3))]))
    assert recipe.passes[0].item == FuseSolver(steps=3)
    assert load(recipe) is recipe


def test_lists_every_problem_at_once(tmp_path: Path) -> None:
    assert problems_of(
        tmp_path,
        """\
pases: []
passes:
  - cahe_regions
  - cache_regions:
      keep_ratio: half
      schedul: [1]
      report: on
  - fuse_solver:
      solver: eulr
      steps: 8.5
      optional: 1
budget: {psnr: true, ssim: 1}
target: onx
calibration: {samples: 0}
""",
    ) == [
        "r.yaml:7:15: found on, which YAML versions read differently; write a decimal number, "
        "true or false, or quote it to mean the text",
        "r.yaml:1:1: unknown key 'pases'; known keys: budget, calibration, lock, parallel, passes, "
        "target. Did you mean passes?",
        "r.yaml:3:5: unknown pass 'cahe_regions'; known passes: cache_regions, fuse_solver. "
        "Did you mean cache_regions?",
        'r.yaml:5:19: cache_regions.keep_ratio: found "half", expected a number',
        "r.yaml:6:7: cache_regions: unknown option 'schedul'; known options: keep_ratio, "
        "optional, report, schedule. Did you mean schedule?",
        'r.yaml:9:15: fuse_solver.solver: found "eulr", expected one of euler, dpm-solver-pp',
        "r.yaml:10:14: fuse_solver.steps: found 8.5, expected a whole number or null",
        "r.yaml:11:17: fuse_solver.optional: found 1, expected true or false",
        "r.yaml:12:16: budget.psnr: found true, expected a number or null",
        "r.yaml:12:22: budget: unknown option 'ssim'; known options: psnr, relative_error, "
        "token_match",
        "r.yaml:14:14: calibration: samples: found 0, expected a number in [1, 64]",
        "r.yaml:13:9: unknown target 'onx'; known targets: aoti, onnx, tensorrt, tensorrt-rtx. "
        "Did you mean onnx?",
    ]


def test_out_of_range_names_the_pass(tmp_path: Path) -> None:
    text = "passes: [{cache_regions: {keep_ratio: 1.5}}]"
    assert problems_of(tmp_path, text) == [
        "r.yaml:1:26: cache_regions: keep_ratio: found 1.5, expected a number in (0, 1]"
    ]


def test_missing_option_is_named(tmp_path: Path) -> None:
    assert problems_of(tmp_path, "passes: [cache_regions]") == [
        "r.yaml:1:10: cache_regions: keep_ratio is missing, expected a number"
    ]


def test_options_beside_the_pass_are_explained(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "passes:\n  - fuse_solver:\n    steps: 3")
    assert problem == (
        "r.yaml:2:5: found 'steps' beside 'fuse_solver' in one entry; indent options below "
        "`fuse_solver:`, and begin another pass with `- `"
    )


@pytest.mark.parametrize("text", ["os.system", "optimize.passes.fuse_solver", "a:b"])
def test_import_paths_are_refused(tmp_path: Path, text: str) -> None:
    (problem,) = problems_of(tmp_path, f"passes: ['{text}']")
    assert f"unknown pass '{text}'; a recipe never imports code" in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "found an empty recipe"),
        ("# nothing", "found an empty recipe"),
        ("[1, 2]", "expected a mapping with `passes`"),
        ("budget: {}", "`passes` is missing"),
        ("passes: fuse_solver", "passes: found str, expected a list"),
        ("passes: [3]", "found 3, expected the name of a pass"),
        ("passes: [{fuse_solver: 3}]", "fuse_solver: found 3, expected options by name"),
        ("passes: []\npasses: []", "found key 'passes' again"),
        ("passes: [{fuse_solver: {steps: '8'}}]", 'found "8", expected a whole number'),
        ("passes: [{fuse_solver: {solver: 1.10}}]", "found 1.10, expected one of"),
        ("passes: [{cache_regions: {keep_ratio: true}}]", "found true, expected a number"),
    ],
)
def test_refused(tmp_path: Path, text: str, expected: str) -> None:
    (problem,) = problems_of(tmp_path, text)
    assert expected in problem


def test_order_that_cannot_work_is_refused(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "passes: [fuse_solver, {cache_regions: {keep_ratio: 0.5}}]")
    assert (
        "found cache_regions after fuse_solver, expected it before: fuse_solver merges" in problem
    )
    (problem,) = problems_of(tmp_path, "passes: [fuse_solver, fuse_solver]")
    assert "found fuse_solver a second time, expected it once" in problem


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("image-fats", "unknown recipe 'image-fats'; known recipes: balanced, image-fast"),
        ("image-fats", "Did you mean image-fast?"),
        ("nothing.yaml", "recipe nothing.yaml: found nothing there, expected a YAML file"),
        ("/", "found a folder or special file"),
        (3, "found int, expected a name"),
    ],
)
def test_sources_that_are_no_recipe(source: object, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(source)
    assert expected in str(caught.value)


@pytest.mark.parametrize("name", names())
def test_named_recipes_say_what_was_measured(name: str) -> None:
    text = (Path(__file__).parents[2] / "recipes" / "library" / f"{name}.yaml").read_text()
    assert text.startswith("# ") and "# Measured" in text


@pytest.mark.parametrize("name", names())
def test_named_recipes_load(name: str) -> None:
    assert Recipe.load(name).name == name


def test_a_lock_has_what_the_passes_found_and_is_a_recipe_itself(tmp_path):
    from optimize.api import apply_recipe
    from tests.passes.tiny_video import tiny_video

    recipe = Recipe.load(
        {"passes": [{"tile_attention": {"budget": 0.1}}, {"fuse_solver": {"steps": 2}}]}
    )
    program = apply_recipe(tiny_video(), recipe)
    locked = recipe.locked(program.history)
    path = tmp_path / "video.lock.yaml"
    path.write_text(locked.to_yaml())
    again = Recipe.load(path)
    assert again.passes == locked.passes
    references = again.passes[0].item.references
    assert isinstance(references, tuple) and len(references) == 3
    assert apply_recipe(tiny_video(), again).history[0].sites == program.history[0].sites


def test_a_lock_of_another_program_is_refused():
    from tests.passes.tiny_video import tiny_video

    recipe = Recipe.load({"passes": ["tile_attention", "fuse_solver"]})
    with pytest.raises(RecipeError, match="expected one after tile_attention, fuse_solver"):
        recipe.locked(tiny_video().history)


def test_an_optional_pass_that_declined_is_not_in_the_lock():
    from optimize.api import apply_recipe
    from tests.passes.tiny_video import tiny_video

    recipe = Recipe.load({"passes": [{"tile_attention": {"budget": 0.0, "optional": True}}]})
    assert recipe.locked(apply_recipe(tiny_video(), recipe).history).passes == ()

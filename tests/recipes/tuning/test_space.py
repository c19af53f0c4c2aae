"""The search space of a program, and what a trial suggests from it."""

import optuna
import pytest
from optuna.trial import FixedTrial

import optimize.api  # noqa: F401
from optimize.capture.from_denoiser import capture
from optimize.ir.errors import RecipeError
from optimize.ir.program import Program
from optimize.passes.catalog import PASSES
from optimize.recipes.recipe import Recipe, names
from optimize.recipes.tuning.search import known_recipe
from optimize.recipes.tuning.space import SearchSpace, search_space
from tests.recipes.tuning.tiny_flow import STEPS, tiny


@pytest.fixture(scope="module")
def program() -> Program:
    model, inputs, loop = tiny()
    return capture(model, inputs, loop=loop)


@pytest.fixture(scope="module")
def space(program: Program) -> SearchSpace:
    return search_space(program, "onnx")


def test_holds_the_passes_that_apply_in_their_order(space: SearchSpace) -> None:
    assert [item.name for item in space.passes] == ["cache_regions", "fuse_solver"]
    assert {*space.left_out, *(item.name for item in space.passes)} == {p.name for p in PASSES}
    assert space.left_out["attach_draft"] == "the program does not generate tokens"
    assert "no options to search for target onnx" in space.left_out["lower_precision"]


def test_another_target_has_half_precision(program: Program) -> None:
    there = search_space(program, "tensorrt-rtx")
    assert "lower_precision" in [item.name for item in there.passes]


def test_every_suggestion_is_a_recipe_or_says_why_not(space: SearchSpace) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    reasons = []
    for _ in range(60):
        entries = space.suggest(study.ask())
        assert entries, "one pass at least is on"
        try:
            space.check(entries)
        except RecipeError as error:
            reasons.append(str(error))
            continue
        recipe = Recipe.load({"passes": entries})
        steps = [getattr(entry.item, "steps", None) for entry in recipe.passes]
        assert all(count is None or 3 <= count <= STEPS for count in steps)
    assert reasons and all(reason.startswith("fuse_solver: order: found 3") for reason in reasons)


@pytest.mark.parametrize("name", names())
def test_library_recipes_can_be_suggested(program: Program, space: SearchSpace, name: str) -> None:
    known = known_recipe(Recipe.load(name), program)
    if isinstance(known, str):
        assert name in ("llm-fast", "masked-fast", "vlm-fast")
        return
    parameters = space.parameters(known)
    if name == "image-quality":
        assert parameters is None, "it has more steps than this program"
        return
    assert parameters is not None
    entries = space.suggest(FixedTrial(parameters))  # type: ignore[arg-type]
    suggested = [entry.item for entry in Recipe.load({"passes": entries}).passes]
    assert suggested == [entry.item for entry in known.passes]


def test_a_recipe_outside_of_the_space_has_no_parameters(space: SearchSpace) -> None:
    for options in ({"steps": 5, "eta": 1.0, "solver": "ddim"}, {"steps": STEPS + 1}):
        recipe = Recipe.load({"passes": [{"fuse_solver": options}]})
        assert space.parameters(recipe) is None
    sharded = Recipe.load({"passes": [{"shard_sequence": {"processes": 2}}]})
    assert space.parameters(sharded) is None

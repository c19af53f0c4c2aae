"""Locks of recipes: what they are bound to, and what is refused."""

from dataclasses import replace

import pytest
import torch
import yaml

from optimize.api import apply_recipe
from optimize.ir.errors import RecipeError
from optimize.ir.program import Program
from optimize.recipes.lock import Lock
from optimize.recipes.recipe import Recipe
from optimize.runtime.session import load

RECIPE = {"passes": [{"fuse_solver": {"steps": 3}}], "calibration": {"samples": 2}}
DIGEST = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def locked(toy_program: Program, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The lock of a bundle with a receipt."""
    recipe = Recipe.load(RECIPE)
    program = apply_recipe(toy_program, recipe)
    path = tmp_path_factory.mktemp("locks") / "bundle"
    program.export(path, recipe=recipe.to_dict(), example=True, baseline=toy_program)
    return Recipe.load(path / "recipe.lock.yaml")


def test_a_bundle_locks_its_recipe_to_the_captured_program(locked, toy_program):
    lock, source = locked.lock, toy_program.source_digest
    assert (lock.graphs, lock.weights) == (source.graphs, source.weights)
    assert lock.ratio > 0 and lock.machine and lock.versions["torch"]
    assert set(lock.speedup) == {"value", "interval"}
    low, high = lock.quality["relative_error"]["interval"]
    assert low <= lock.quality["relative_error"]["value"] <= high
    assert Recipe.load(locked.to_dict()) == replace(locked, name="recipe")


def test_a_locked_recipe_runs_on_its_model(locked, toy_program):
    after = apply_recipe(toy_program, locked)
    assert after.notes == toy_program.notes
    request = {"shift": [0.1, 0.2], "seed": 3}
    expected = apply_recipe(toy_program, Recipe.load(RECIPE))(**request)["latent"]
    assert torch.equal(after(**request)["latent"], expected)


def test_locked_twice_equals_once(locked, toy_program, tmp_path):
    again = apply_recipe(toy_program, locked)
    once = locked.locked(again.history, locked.lock)
    assert once == replace(locked, name=once.name)
    twice = once.locked(again.history, locked.lock)
    assert twice == once and twice.name.count("lock") == once.name.count("lock")
    path = again.export(tmp_path / "bundle", recipe=locked.to_dict())
    exported = Recipe.load(path / "recipe.lock.yaml")
    assert exported.passes == locked.passes
    bound = replace(locked.lock, machine=None, ratio=None, speedup=None, quality={})
    assert exported.lock == bound
    with load(path) as session:
        assert session.manifest.recipe["lock"]["graphs"] == locked.lock.graphs


def test_another_model_is_refused(locked, tiny_program):
    with pytest.raises(RecipeError) as caught:
        apply_recipe(tiny_program(), locked)
    found, expected = tiny_program().source_digest.graphs[:12], locked.lock.graphs[:12]
    assert str(caught.value) == (
        f"recipe recipe.lock: locked to another model: found graphs {found}…, expected "
        f"{expected}…; run the recipe it was made from, or remove `lock:`"
    )


def test_other_weights_are_noted(locked, toy_program):
    weights = {name: tensor * 1.01 for name, tensor in toy_program.weights.items()}
    tuned = replace(toy_program, weights=weights)
    assert apply_recipe(tuned, locked).notes[-1] == (
        "the lock is of other weights; quality was measured anew"
    )
    unchecked = apply_recipe(tuned, locked, verify=False)
    assert "the lock is of other weights; quality was not measured" in unchecked.notes


@pytest.mark.parametrize(
    ("lock", "expected"),
    [
        ({"graph": DIGEST, "weights": DIGEST}, "lock: unknown option 'graph'; known options: "),
        ({"graph": DIGEST, "weights": DIGEST}, "Did you mean graphs?"),
        ({"weights": DIGEST}, "lock: graphs is missing, expected text"),
        ({"graphs": "ab12", "weights": DIGEST}, "graphs: found 'ab12', expected 64 hexadecimal"),
        ({"graphs": DIGEST, "weights": 3}, "lock.weights: found 3, expected text"),
        ({"graphs": DIGEST, "weights": DIGEST, "ratio": -1.0}, "ratio: found -1.0, expected a fin"),
        (3, "lock: found 3, expected options by name"),
    ],
)
def test_a_lock_that_is_none_is_refused(lock, expected):
    with pytest.raises(RecipeError) as caught:
        Recipe.load({"passes": [], "lock": lock})
    assert expected in str(caught.value)


def test_a_lock_without_figures_is_short():
    lock = Lock(DIGEST, DIGEST, {"numpy": "2.0"})
    recipe = replace(Recipe.load({"passes": []}), lock=lock)
    data = yaml.safe_load(recipe.to_yaml())["lock"]
    assert data == {"graphs": DIGEST, "weights": DIGEST, "versions": {"numpy": "2.0"}}
    assert Recipe.load(recipe.to_dict()).lock == lock

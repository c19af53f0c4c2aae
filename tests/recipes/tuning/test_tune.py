"""A search from the program to the recipe, resumed, shared, and interrupted."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import optimize.api  # noqa: F401
from optimize.api import apply_recipe
from optimize.capture.from_denoiser import capture
from optimize.ir.errors import RecipeError
from optimize.ir.program import Program
from optimize.recipes.recipe import Budget, Recipe
from optimize.recipes.tuning.finish import Tuned
from optimize.recipes.tuning.storage import check_storage
from optimize.recipes.tuning.study import LOST
from optimize.recipes.tuning.tune import tune
from optimize.runtime.errors import ResourceError
from tests.recipes.tuning.tiny_flow import STEPS, tiny

ROOT = Path(__file__).parents[3]
WORKER = Path(__file__).with_name("tune_worker.py")
BUDGET = Budget(psnr=20)
TRIALS = 16


@pytest.fixture(scope="session")
def program() -> Program:
    model, inputs, loop = tiny()
    return capture(model, inputs, loop=loop)


@pytest.fixture(scope="session")
def tuned(program: Program) -> Tuned:
    return tune(program, BUDGET, model="tiny", trials=TRIALS)


def worker(storage: Path, trials: int, case: str) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER), str(storage), str(trials), case]
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def counted(found: Tuned) -> list[int]:
    return [item.number for item in found.tuning.attempts if item.state != "failed"]


def workers(storage: Path) -> list[str]:
    """The processes that a journal names, one per trial."""
    logs = [json.loads(line) for line in storage.read_text().splitlines()]
    attributes = [log.get("user_attr", {}) for log in logs if log.get("op_code") == 8]
    return [item["worker"]["token"] for item in attributes if "worker" in item]


def test_recipe_is_faster_and_holds_the_budget(program: Program, tuned: Tuned) -> None:
    recipe = tuned.recipe
    assert recipe is not None and tuned.why_none == ""
    assert recipe.budget == BUDGET
    after = apply_recipe(program, recipe)  # raises where the budget is missed
    assert after.history[-1].details["psnr"] >= 20
    assert after.description is not None and after.description.steps < STEPS
    rows = {item.number: item for item in tuned.tuning.measured}
    assert rows[tuned.tuning.chosen].seconds < rows[None].seconds
    assert rows[tuned.tuning.chosen].speedup.value > 1


def test_chosen_is_the_fastest_measured_within_the_budget(tuned: Tuned) -> None:
    tuning = tuned.tuning
    within = [
        item
        for item in tuning.measured
        if item.number is not None
        and tuning.attempt(item.number).quality["psnr"] >= 20
        and item.fresh_quality["psnr"] >= 20
    ]
    assert min(within, key=lambda item: item.seconds).number == tuning.chosen


def test_recipe_survives_its_file(tuned: Tuned, tmp_path: Path) -> None:
    assert tuned.recipe is not None
    path = tmp_path / "tuned.yaml"
    path.write_text(tuned.tuning.recipe)
    loaded = Recipe.load(path)
    assert loaded == tuned.recipe
    assert loaded.calibration.samples == 8


def test_known_recipes_are_tried_first(tuned: Tuned) -> None:
    names = [item.name for item in tuned.tuning.attempts[:4]]
    assert names == ["balanced", "image-fast", "image-quality", "video-fast"]
    chosen = tuned.tuning.attempt(tuned.tuning.chosen or 0).name
    assert {"image-fast", "balanced"} <= {chosen, *tuned.tuning.ratios}


def test_every_dropped_trial_has_its_reason(tuned: Tuned) -> None:
    attempts = tuned.tuning.attempts
    assert len(attempts) == TRIALS
    dropped = [item for item in attempts if item.state == "pruned"]
    assert all(item.reason for item in dropped)
    for item in attempts:
        if item.state == "judged":
            assert item.predicted_seconds and item.quality["psnr"] is not None


def test_the_search_repeats_itself(program: Program, tuned: Tuned) -> None:
    again = tune(program, BUDGET, model="tiny", trials=8)
    passes = [item.passes for item in again.tuning.attempts]
    assert passes == [item.passes for item in tuned.tuning.attempts[:8]]
    other = tune(program, BUDGET, model="tiny", trials=8, seed=1)
    assert [item.passes for item in other.tuning.attempts] != passes


def test_unreachable_budget_says_the_best_quality(program: Program) -> None:
    found = tune(program, Budget(psnr=500), model="tiny", trials=5)
    assert found.recipe is None and found.tuning.chosen is None
    best = max(item.quality["psnr"] or 0 for item in found.tuning.judged)
    assert f"psnr {best:.1f} dB" in found.why_none


def test_resumes_after_a_kill(program: Program, tmp_path: Path) -> None:
    storage = tmp_path / "study.log"
    assert worker(storage, 12, "kill").wait(60) == -9
    # What a process that is killed while it writes leaves behind.
    with storage.open("ab") as file:
        file.write(b'{"op_code":')
    found = tune(program, BUDGET, model="tiny", trials=12, storage=storage)
    assert len(counted(found)) == 12
    (lost,) = [item for item in found.tuning.attempts if item.state == "failed"]
    assert lost.number == 5 and lost.reason == LOST
    assert len(set(workers(storage))) == 2
    # All of it is there: nothing is tried again, and the same recipe comes out of the storage.
    third = tune(program, BUDGET, model="tiny", trials=12, storage=storage)
    assert third.tuning.attempts == found.tuning.attempts
    assert len(set(workers(storage))) == 2


def test_two_processes_share_the_trials(program: Program, tmp_path: Path) -> None:
    storage = tmp_path / "study.log"
    other = worker(storage, 14, "slow")
    until = time.monotonic() + 60
    while not (storage.exists() and workers(storage)):
        assert time.monotonic() < until and other.poll() is None
        time.sleep(0.05)
    found = tune(program, BUDGET, model="tiny", trials=14, storage=storage)
    assert other.wait(60) == 0
    by_process = workers(storage)
    assert len(set(by_process)) == 2
    last = tune(program, BUDGET, model="tiny", trials=14, storage=storage)
    assert len(counted(last)) == 14
    assert found.recipe is not None
    asked = [str(item.passes) for item in last.tuning.attempts if item.state == "judged"]
    assert len(asked) == len(set(asked))


def test_interrupt_keeps_what_there_is(program: Program) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "trial 6":
            raise KeyboardInterrupt

    found = tune(program, BUDGET, model="tiny", trials=TRIALS, progress=interrupt)
    assert found.recipe is not None
    assert "interrupted" in found.tuning.notes[0]
    assert len(counted(found)) == 5


def test_stops_when_the_time_is_up(program: Program) -> None:
    start = time.monotonic()
    found = tune(program, BUDGET, model="tiny", trials=100_000, minutes=0.05)
    assert time.monotonic() - start < 20
    assert 0 < len(found.tuning.attempts) < 100_000
    assert "time was up" in found.tuning.notes[0]


def test_a_storage_belongs_to_one_search(program: Program, tmp_path: Path) -> None:
    storage = tmp_path / "study.log"
    tune(program, BUDGET, model="tiny", trials=1, storage=storage)
    with pytest.raises(RecipeError, match="found a study of model 'tiny', expected model 'other'"):
        tune(program, BUDGET, model="other", trials=1, storage=storage)
    with pytest.raises(RecipeError, match="study of metric 'psnr', expected .*'relative_error'"):
        budget = Budget(relative_error=0.1)
        tune(program, budget, model="tiny", trials=1, storage=storage)
    model, inputs, loop = tiny()
    changed = capture(model.double(), {k: v.double() for k, v in inputs.items()}, loop=loop)
    with pytest.raises(RecipeError, match="study of program"):
        tune(changed, BUDGET, model="tiny", trials=1, storage=storage)
    # Another limit of the same metric goes on with the same trials.
    eased = tune(program, Budget(psnr=5), model="tiny", trials=1, storage=storage)
    assert len(eased.tuning.attempts) == 1


def test_storage_that_is_none(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("bread\n")
    with pytest.raises(RecipeError, match="no journal of a study"):
        check_storage(text)
    with pytest.raises(RecipeError, match="found a folder, expected a file"):
        check_storage(tmp_path)
    with pytest.raises(ResourceError, match="make it first"):
        check_storage(tmp_path / "absent" / "study.log")
    check_storage(tmp_path / "new.log")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": Budget()}, "budget: found none"),
        ({"trials": 0}, "trials: found 0"),
        ({"minutes": 0.0}, "minutes: found 0.0"),
        ({"threads": 0}, "threads: found 0"),
        ({"budget": Budget(token_match=0.9)}, "no such metric, expected relative_error or psnr"),
        (
            {"starts": [Recipe.load("llm-fast")]},
            "--start llm-fast: none of its passes applies",
        ),
        ({"starts": [Recipe.load("vlm-fast")]}, "--start vlm-fast: prune_visual_tokens: the prog"),
    ],
    ids=["no budget", "trials", "minutes", "threads", "metric", "optional start", "start"],
)
def test_wrong_arguments(program: Program, options: dict[str, object], message: str) -> None:
    arguments = {"budget": BUDGET, "trials": 1, **options}
    with pytest.raises(RecipeError, match=message):
        tune(program, model="tiny", **arguments)  # type: ignore[arg-type]


def test_the_metric_that_is_traded_can_be_any_of_the_budget(program: Program) -> None:
    budget = Budget(psnr=20, relative_error=0.5)
    found = tune(program, budget, metric="relative_error", model="tiny", trials=1)
    assert found.tuning.metric == "relative_error"
    assert found.tuning.limits == {"psnr": 20, "relative_error": 0.5}

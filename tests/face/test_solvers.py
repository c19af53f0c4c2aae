"""`optimize solvers`: the list, and the comparison on tiny models with few calls."""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from optimize.capture.capture_model import capture_model
from optimize.cli import run_command
from optimize.commands.models import LoadedModel, load_model
from optimize.commands.progress import StageBar
from optimize.commands.solver_figures import measure_solvers
from optimize.commands.solvers import ScheduleName
from optimize.ir.errors import RecipeError
from optimize.ir.program import Program
from optimize.ir.schedules import Spacing
from optimize.measure.quality import Interval, trajectory_distance
from optimize.measure.solver_comparison import Score, SolverComparison, SolverLine
from optimize.passes.fuse_solver import ADAPTIVE, FuseSolver
from optimize.passes.solvers.catalog import SOLVERS
from optimize.recipes.recipe import Recipe

MODEL = """
import torch
from torch import nn
from optimize import DenoiseLoop


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, hidden_states, timestep, shift=None):
        seen = hidden_states + torch.cos(timestep * 0.001)[:, None]
        if shift is not None:
            seen = seen + shift[:, None]
        return hidden_states + torch.tanh(self.mix(seen))


def made(loop):
    torch.manual_seed(0)
    inputs = {"hidden_states": torch.zeros(2, 8), "timestep": torch.zeros(2)}
    return Model().eval(), inputs, loop


def flow():
    return made(DenoiseLoop(steps=12))


def epsilon():
    return made(DenoiseLoop(steps=12, prediction="epsilon"))


def conditional():
    model, inputs, loop = flow()
    return model, {**inputs, "shift": torch.tensor([0.5, -0.5])}, loop
"""
CALLS = (3, 6, 12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of the tiny models, as in a MODEL argument."""
    path = tmp_path_factory.mktemp("models") / "model.py"
    path.write_text(MODEL)
    return str(path)


@cache
def captured(model: str) -> tuple[LoadedModel, Program]:
    """A model and its captured program; captured once."""
    loaded = load_model(model)
    return loaded, capture_model(loaded.model, loaded.example_inputs, loop=loaded.loop)


def measured(model: str, judge: Any = None, **changes: Any) -> SolverComparison:
    """A comparison of few samples, through the library."""
    loaded, program = captured(model)
    options: dict[str, Any] = {
        "names": (),
        "schedule": "same",
        "calls": CALLS,
        "samples": 5,
        "seed": 0,
        "reference_calls": 40,
        "progress": StageBar(quiet=True),
    }
    return measure_solvers(program, replace(loaded, judge=judge), **(options | changes))


def test_lists_every_solver(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["solvers", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {*SOLVERS, ADAPTIVE}
    assert all(row["description"].endswith(".") for row in rows.values())
    assert rows["heun"]["calls_per_step"] == 2 and rows["heun"]["flow_only"]
    assert rows["unipc"]["orders"] == [1, 3]
    assert rows["ddim"]["options"] == ["dualfast", "eta", "thresholding"]
    assert run_command(["solvers"]) == 0
    shown = capsys.readouterr().out
    assert "dpm_solver_pp_singlestep" in shown and "its order" in shown


def test_schedules_are_those_of_fuse_solver() -> None:
    assert get_args(ScheduleName) == ("same", *get_args(Spacing))


def test_leaves_page_picture_and_numbers(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["solvers", f"{model}:flow", "--out", str(out), "--calls", "3,6", "--samples", "3"]
    arguments += ["--reference-calls", "20", "--solver", "euler", "--solver", "unipc"]
    assert run_command([*arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads((out / "solvers.json").read_text())
    assert {path.name for path in out.iterdir()} == {"index.html", "solvers.json", "solvers.png"}
    assert (out / "solvers.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "index.html").read_text()
    assert page.count('class="best"') == 4  # two metrics, two columns
    assert "data:image/svg+xml" in page and "<script" not in page
    assert all(target.startswith("data:") for target in re.findall(r'src="([^"]*)', page))
    assert run_command(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    first = (out / "solvers.json").read_bytes(), page
    assert run_command([*arguments, "--overwrite"]) == 0
    assert first == ((out / "solvers.json").read_bytes(), (out / "index.html").read_text())
    assert "as close as euler with 12 calls, with" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["flow", "conditional"])
def test_scores_are_those_of_the_program_run_by_hand(model: str, name: str) -> None:
    comparison = measured(f"{model}:{name}", names=("unipc",), calls=(6,))
    _, program = captured(f"{model}:{name}")

    def ends(item: FuseSolver) -> Any:
        after = item.rewrite(program).program
        if name == "flow":
            return after(batch=5, seed=0)["latent"]
        # The example's conditioning is of two samples: three requests, the last one cut.
        parts = [after(shift=[0.5, -0.5], seed=seed)["latent"] for seed in (0, 1, 2)]
        return np.concatenate(parts)[:5]

    exact = ends(FuseSolver(solver="adams_bashforth", order=3, steps=40))
    line = next(line for line in comparison.lines if line.name == "unipc 2")
    expected = trajectory_distance(ends(FuseSolver(solver="unipc", order=2, steps=6)), exact)
    assert line.scores[6].distance == expected


def test_flow_model_has_its_solvers_and_higher_order_is_closer(model: str) -> None:
    comparison = measured(f"{model}:flow", reference_calls=200)
    names = [line.name for line in comparison.lines]
    assert {"euler", "heun", "adams_bashforth 2", "adams_bashforth 3", "unipc 3"} <= set(names)
    assert "dpm_solver_pp 2, dualfast 0.25" in names
    assert "pure noise" in comparison.left_out["dpm_solver"]
    assert "as many calls as its tolerance needs" in comparison.left_out[ADAPTIVE]
    euler, second = (
        next(line for line in comparison.lines if line.name == name).scores[12].value("distance")
        for name in ("euler", "adams_bashforth 2")
    )
    assert euler is not None and second is not None and second < euler / 2
    assert comparison.reference_error.value < second / 10
    assert "ddim and euler give the same on this model." in comparison.notes
    # The captured program is Euler with twelve calls, so Euler reaches it with all of them.
    assert comparison.calls_to_captured()["euler"] == 12


def test_recipes_of_the_best_load(model: str) -> None:
    comparison = measured(f"{model}:flow", names=("euler", "unipc"), schedule="time")
    assert set(comparison.recipes) == set(CALLS)
    for calls, text in comparison.recipes.items():
        best = comparison.best(calls)
        assert best is not None and f"steps: {calls}\n" in text and "schedule: time\n" in text
        assert best.name.startswith("unipc") and "solver: unipc\n" in text


def test_recipe_text_is_read_back_as_the_pass_measured(model: str, tmp_path: Path) -> None:
    comparison = measured(f"{model}:flow", names=("dpm_solver_pp",), calls=(6,))
    (tmp_path / "r.yaml").write_text(comparison.recipes[6])
    (entry,) = Recipe.load(tmp_path / "r.yaml").passes
    best = comparison.best(6)
    assert best is not None and entry.item == FuseSolver(**best.options, steps=6)


def test_declines_at_some_calls_are_told(model: str) -> None:
    comparison = measured(f"{model}:flow", names=("adams_bashforth",), calls=(2, 4))
    third = next(line for line in comparison.lines if line.name == "adams_bashforth 3")
    assert set(third.scores) == {4}
    assert "found 2 steps for order 3" in third.declined[2]


def test_epsilon_model_leaves_flow_solvers_out_and_notes_its_starts(model: str) -> None:
    comparison = measured(f"{model}:epsilon", names=("euler", "dpm_solver", "ddim"), calls=(6,))
    assert "expected 'flow'" in comparison.left_out["euler"]
    assert {line.name for line in comparison.lines} == {"dpm_solver 2", "dpm_solver 3", "ddim"}
    assert any("begins at another timestep" in note for note in comparison.notes)
    even = measured(f"{model}:epsilon", names=("ddim",), calls=(6,), schedule="log_snr")
    assert not any("begins at another timestep" in note for note in even.notes)


def test_model_without_any_suitable_solver_is_told(model: str) -> None:
    with pytest.raises(RecipeError, match="found none that suits the model: dpm_solver: .*pure"):
        measured(f"{model}:flow", names=("dpm_solver",))


class MeanJudge:
    """Stands in for a judge of sets: the mean of the samples, as if it were a distance."""

    def fields(self, first: int, count: int) -> dict[str, Any]:
        return {}

    def frechet(self, samples: Any) -> Interval:
        mean = float(np.abs(samples).mean())
        return Interval(mean, mean, mean)


def test_noisy_solvers_are_judged_as_sets_only(model: str) -> None:
    asked: dict[str, Any] = {"names": ("ddim", "dpm_solver_pp_ancestral"), "calls": (6,)}
    with_judge = measured(f"{model}:flow", MeanJudge(), **asked)
    noisy = [line for line in with_judge.lines if "eta 1" in line.name]
    assert [line.name for line in noisy] == ["ddim, eta 1", "dpm_solver_pp_ancestral, eta 1"]
    for line in noisy:
        assert line.scores[6].distance is None and line.scores[6].psnr is None
        assert line.scores[6].frechet is not None
    without = measured(f"{model}:flow", **asked)
    assert "has no judge" in without.left_out["ddim, eta 1"]
    assert without.metrics == ("distance", "psnr")


def test_best_and_fewest_calls_follow_from_the_scores() -> None:
    def line(name: str, *values: float) -> SolverLine:
        scores = {
            calls: Score(Interval(value, value, value + 0.15), psnr=-value)
            for calls, value in zip((4, 8), values, strict=True)
        }
        return SolverLine(name, {"solver": name}, scores)

    comparison = SolverComparison(
        "m", 2, 0, "same", (4, 8), "r", Interval(0, 0, 0), "c",
        Score(Interval(0.5, 0.5, 0.5)), (line("a", 0.4, 0.3), line("b", 0.6, 0.2)), {},
    )  # fmt: skip
    best = [comparison.best(calls) for calls in (4, 8)]
    assert [item.name for item in best if item] == ["a", "b"]
    assert comparison.best(8, "psnr") is best[1]
    assert comparison.best(8, "frechet") is None
    # At 8 calls the interval of b, 0.2 to 0.35, holds a's 0.3.
    clearly = [comparison.clearly_best(calls, "distance") for calls in (4, 8)]
    assert clearly == [best[0], None]
    assert comparison.calls_to_captured() == {"a": 4, "b": 8}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--calls", "4,x"], "found no list of whole numbers, expected one such as 4,6,8"),
        (["--calls", "0,4"], "expected numbers from 1 to 50"),
        (["--calls", "60"], "raise that for more"),
        (["--solver", "unicp"], "Did you mean unipc?"),
        (["--solver", ADAPTIVE], "expected a solver of a fixed number of calls"),
        (["--out", "-"], "expected the path of a new folder"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_before_any_work(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["solvers", "zoo:digits-dit", *arguments]) == 2
    assert expected in " ".join(capsys.readouterr().err.split())


def test_out_without_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["solvers", "--out", str(tmp_path / "out")]) == 2
    assert "found no MODEL to measure" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["digits-dit", "digits-dit-epsilon", "digits-dit-v"])
def test_digits_bring_their_judge(name: str) -> None:
    judge = load_model(f"zoo:{name}").judge
    assert judge is not None
    assert judge.fields(8, 4)["class_labels"].tolist() == [8, 9, 0, 1]

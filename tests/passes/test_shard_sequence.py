"""The pass shard_sequence: several processes together equal one, and end together."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from optimize.ir.errors import PassDeclined, RecipeError
from optimize.ir.process_group import process_group
from optimize.ir.program import Program
from optimize.passes.catalog import latest_position
from optimize.passes.fuse_solver import FuseSolver
from optimize.passes.pipeline import run_passes
from optimize.passes.shard_sequence import ShardSequence
from optimize.recipes.recipe import Recipe

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("shard_worker.py")
BOUND = {"float32": 1e-5, "float64": 1e-10}


def start(case: str, processes: int, file: Path) -> list[subprocess.Popen[str]]:
    """The processes of a case, as torchrun would start them but without its watching over them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), case, str(file)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def results(case: str, processes: int, folder: Path) -> dict[str, Any]:
    file = folder / "found.json"
    started = start(case, processes, file)
    errors = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0] * processes, errors[0][-3000:]
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_equal_one(processes: int, tmp_path: Path) -> None:
    found = results("tiny", processes, tmp_path)
    for form in ("heads", "keys", "tiles"):
        for dtype, bound in BOUND.items():
            assert found[f"{form} {dtype}"] <= bound, (form, dtype)
    assert "tile_attention over the queries of all tokens" in found["tiles keys"]
    assert f"found 1 heads, expected a multiple of {processes} processes" in found["one head"]
    assert found["other size"].startswith(f"found a process group of {processes}, expected one of")
    assert "remove `parallel` from the recipe" in found["export"]
    alone, each = found["per_process"]
    assert alone["bytes_sent_per_step"] == 0 and alone["flop_scaling"] == 1.0
    # Queries, keys, values and the result of [2, 4, 24, 8] float64; the text rows of the result,
    # [2, 4, 3, 8]; and the patches of the prediction, [2, 24, 16].
    sent = 8 * (4 * 1536 / processes) * (processes - 1) / processes
    sent += 8 * (192 + 768) / processes * (processes - 1)
    assert each["bytes_sent_per_step"] == sent
    assert each["flops_per_step"] < alone["flops_per_step"]


@pytest.mark.slow
def test_families_in_two_processes_equal_one(tmp_path: Path) -> None:
    for name, error in results("families", 2, tmp_path).items():
        assert error <= BOUND[name.split()[1]], name


@pytest.mark.slow
@pytest.mark.parametrize("case", ["killed", "stopped"])
def test_a_lost_process_ends_the_others_with_one_error(case: str, tmp_path: Path) -> None:
    file = tmp_path / "lost_at"
    first, last = start(case, 2, file)
    try:
        error = first.communicate(timeout=300)[1]
        # The worker's timeout is 8 s; the rest is for Python to end.
        assert time.time() - float(file.read_text()) < 8 + 12
        assert first.returncode == 4
        (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
        assert "process 0 of 2: graph 'denoiser': found another process ended or silent" in line
    finally:
        last.kill()
        last.communicate()


def test_declines_without_processes(toy_program: Program) -> None:
    with pytest.raises(PassDeclined, match="no process group.*torchrun --nproc-per-node 2"):
        run_passes(toy_program, [ShardSequence(2)])


def test_declines_when_fused_or_not_divisible(toy_program: Program, monkeypatch: Any) -> None:
    fused = FuseSolver().rewrite(toy_program).program
    assert "before fuse_solver" in (ShardSequence(2).declines(fused) or "")
    group = "optimize.passes.shard_sequence.share_of_group"
    monkeypatch.setattr(group, lambda processes: object())
    assert ShardSequence(4).declines(toy_program) == (
        "found 6 tokens, expected a multiple of 4 processes; use as many processes as divide it"
    )


def test_one_process_changes_nothing(toy_program: Program) -> None:
    alone = run_passes(toy_program, [ShardSequence(1)])
    assert alone.history[0].error == 0.0
    request = {"shift": torch.tensor([0.5, -0.5])}
    expected = toy_program(seed=3, **request)["latent"]
    assert torch.equal(alone(seed=3, **request)["latent"], expected)


@pytest.mark.parametrize("options", [{"processes": 0}, {"processes": 1025}, {"exchange": "rows"}])
def test_refuses_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ShardSequence(**options)


def test_group_of_another_size_says_how_to_start(monkeypatch: Any) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RecipeError, match="torchrun --nproc-per-node 3"), process_group(3):
        pass


def test_recipe_places_the_pass_before_the_fused_solver() -> None:
    from optimize.api import all_passes

    recipe = Recipe.load(
        {"passes": ["fuse_solver"], "parallel": {"sequence": 2, "exchange": "keys"}}
    )
    assert [entry.item.name for entry in all_passes(recipe)] == ["shard_sequence", "fuse_solver"]
    assert all_passes(recipe)[0].item == ShardSequence(2, "keys")
    assert Recipe.load(recipe.to_dict()).parallel == recipe.parallel
    assert "sequence: 2" in recipe.to_yaml()
    assert latest_position("shard_sequence", ["other"]) == 1


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"parallel": {"sequence": 0}}, "found 0, expected a number in"),
        ({"parallel": {"sequence": "2"}}, "expected a whole number"),
        ({"parallel": {"heads": 2}}, "unknown option 'heads'"),
        ({"passes": ["cache_regions"], "parallel": {"sequence": 2}}, "do not go together"),
        ({"passes": ["shard_sequence"], "parallel": {"sequence": 2}}, "leave it out"),
    ],
)
def test_recipe_refuses(data: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        Recipe.load({"passes": [], **data})

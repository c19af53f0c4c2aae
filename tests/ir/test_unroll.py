"""Joined steps: the same numbers in fewer calls."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from optimize.capture.from_denoiser import capture
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.errors import RecipeError
from optimize.ir.printing import program_text
from optimize.ir.program import denoising_repeat, with_repeat
from optimize.ir.spec import check_program
from optimize.ir.unroll import unrolled
from optimize.passes.cache_regions import CacheRegions
from optimize.passes.fuse_solver import FuseSolver


class Denoiser(torch.nn.Module):
    """A small model that predicts the clean value."""

    def __init__(self):
        super().__init__()
        self.inside, self.outside = torch.nn.Linear(4, 16), torch.nn.Linear(16, 4)

    def forward(self, hidden_states, timestep):
        time = torch.cos(timestep * 0.01).reshape(-1, 1, 1)
        return self.outside(torch.tanh(self.inside(hidden_states) + time))


@pytest.fixture(scope="module")
def noisy_program():
    """Seven steps of a variance-preserving model with a stochastic solver."""
    torch.manual_seed(0)
    inputs = {"hidden_states": torch.randn(2, 6, 4), "timestep": torch.tensor([1.0, 1.0])}
    program = capture(Denoiser().eval(), inputs, loop=DenoiseLoop(prediction="denoised", steps=7))
    fused = FuseSolver(solver="dpm_solver_pp", eta=1.0).rewrite(program).program
    assert len(fused.loop.noise) == 2
    return fused


@pytest.mark.parametrize(("count", "groups"), [(1, 7), (2, 4), (3, 3), (7, 1), (100, 1), (None, 1)])
def test_noise_and_tables_are_those_of_the_single_steps(noisy_program, count, groups):
    joined = unrolled(noisy_program, count)
    check_program(joined)
    assert len(denoising_repeat(joined).steps) == groups
    expected = noisy_program(seed=3, batch=3)["latent"]
    assert torch.equal(joined(seed=3, batch=3)["latent"], expected)
    assert not torch.equal(joined(seed=4, batch=3)["latent"], expected)


def test_a_request_may_give_the_noise_of_each_step(noisy_program):
    rng = np.random.default_rng(0)
    loop = noisy_program.loop
    (name,) = {noise.name for noise in loop.noise} - {"latent"}
    noise = tuple(
        item.model_copy(update={"steps": 7}) if item.name == name else item for item in loop.noise
    )
    program = replace(noisy_program, loop=loop.model_copy(update={"noise": noise}))
    check_program(program)
    given = {name: rng.standard_normal((7, 2, 6, 4)).astype(np.float32)}
    expected = program(seed=0, **given)["latent"]
    assert torch.equal(unrolled(program, 3)(seed=0, **given)["latent"], expected)
    given[name][5] += 1.0
    assert not torch.equal(program(seed=0, **given)["latent"], expected)


def test_one_noise_for_all_steps_stays_that(noisy_program):
    (name,) = {noise.name for noise in noisy_program.loop.noise} - {"latent"}
    noise = tuple(item.model_copy(update={"steps": None}) for item in noisy_program.loop.noise)
    program = replace(noisy_program, loop=noisy_program.loop.model_copy(update={"noise": noise}))
    given = {name: np.ones((2, 6, 4), np.float32)}
    expected = program(seed=0, **given)["latent"]
    assert torch.equal(unrolled(program, 3)(seed=0, **given)["latent"], expected)


def test_calls_of_several_graphs_become_one(toy_program):
    """Before fusion a step is two calls: denoiser and solver."""
    joined = unrolled(toy_program, 2)
    check_program(joined)
    assert set(joined.graphs) == {"steps_0"}
    shift = torch.tensor([0.5, -0.5])
    expected = toy_program(seed=1, shift=shift)["latent"]
    assert torch.equal(joined(seed=1, shift=shift)["latent"], expected)


@pytest.mark.parametrize("count", [3, None])
def test_steps_of_different_bodies_are_joined_in_order(captured, count):
    made, program = captured("sd3", torch.float32)
    regions = CacheRegions(keep_ratio=0.5, warmup=2, max_age=4).rewrite(program).program
    fused = FuseSolver().rewrite(regions).program
    assert len(set(denoising_repeat(fused).steps)) > 1
    joined = unrolled(fused, count)
    check_program(joined)
    expected = fused(seed=3, **made.request())["latent"]
    assert torch.equal(joined(seed=3, **made.request())["latent"], expected)


def test_loop_is_printed_with_the_rows_it_takes(noisy_program):
    text = program_text(unrolled(noisy_program, 3))
    assert "for step in range(0, 6, 3):  # steps_0" in text
    assert 'timestep_table=table["timestep"][step:step + 3]' in text
    assert "for step in range(6, 9, 3):  # steps_1" in text
    assert 'timestep_table=table["timestep"][step:step + 1]' in text


def test_input_program_and_its_weights_stay(noisy_program):
    before = {name: str(graph.graph) for name, graph in noisy_program.graphs.items()}
    joined = unrolled(noisy_program, 2)
    assert {name: str(graph.graph) for name, graph in noisy_program.graphs.items()} == before
    assert joined.weights is noisy_program.weights
    assert joined.tables is noisy_program.tables


def test_refuses_what_cannot_be_joined(noisy_program, toy_program):
    with pytest.raises(RecipeError, match="unroll: found 0, expected a number of steps"):
        unrolled(noisy_program, 0)
    with pytest.raises(RecipeError, match="has joined steps already"):
        unrolled(unrolled(noisy_program, 2))
    repeat = denoising_repeat(noisy_program).model_copy(update={"until": "latent"})
    body = with_repeat(noisy_program, repeat)
    ending = replace(noisy_program, loop=noisy_program.loop.model_copy(update={"body": body}))
    with pytest.raises(RecipeError, match="a loop that ends early"):
        unrolled(ending, 2)
    other = replace(
        noisy_program,
        loop=toy_program.loop,
        graphs={**toy_program.graphs, "solver": noisy_program.graphs["step"]},
    )
    with pytest.raises(RecipeError, match="found graphs .* traced apart"):
        unrolled(other, 2)

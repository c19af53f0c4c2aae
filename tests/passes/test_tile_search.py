"""The search: its order, its budget, and that it goes only one way."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize.kernels.tile_attention.pattern import tile_density
from optimize.passes.calibration import requests
from optimize.passes.pipeline import run_passes
from optimize.passes.tile_attention import TileAttention
from optimize.passes.tile_search import choices, default_candidates
from optimize.passes.trajectory import denoiser_inputs
from tests.passes.tiny_video import FRAMES, tiny_video


def test_candidates_are_those_of_the_paper():
    assert default_candidates(8) == (1, 2, 3, 4)
    assert default_candidates(24) == (3, 4, 6, 8, 12)
    assert default_candidates(3) == (1,)
    assert default_candidates(2) == ()


def test_the_cheapest_tiles_fall_first():
    alone = [{1: 0.5, 4: 0.01}, {1: 0.02, 4: 0.015}]
    assert choices(alone, 8) == [(8, 1), (4, 1), (1, 1)]


ERRORS = st.fixed_dictionaries({k: st.floats(0, 1) for k in (1, 2, 3, 4)})


@given(st.lists(ERRORS, min_size=1, max_size=5))
def test_each_choice_makes_one_layer_sparser_and_ends_at_the_sparsest(alone):
    chain = [(8,) * len(alone), *choices(alone, 8)]
    for before, after in zip(chain, chain[1:], strict=False):
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert len(changed) == 1 and changed[0][1] < changed[0][0]
    assert chain[-1] == (1,) * len(alone)


@given(st.lists(ERRORS, min_size=1, max_size=4))
@settings(max_examples=50)
def test_no_other_choice_saves_as_much_for_less_than_a_corner_costs(alone):
    """On the way, each choice is the cheapest of all that save at least as much."""

    def saved(choice):
        return sum(1 - tile_density(8, count) for count in choice)

    def cost(choice):
        return sum(errors.get(count, 0.0) for count, errors in zip(choice, alone, strict=True))

    every = [()]
    for _ in alone:
        every = [(*choice, count) for choice in every for count in (1, 2, 3, 4, 8)]
    for choice in choices(alone, 8):
        rivals = [cost(other) for other in every if saved(other) >= saved(choice) - 1e-12]
        assert cost(choice) <= min(rivals) + 1e-9


def fitted(budget: float):
    program = tiny_video()
    item = TileAttention(budget=budget, candidates=(1, 2, 3), moments=3)
    return item.fit(program, requests(program))


@pytest.fixture(scope="module")
def searched():
    return {budget: fitted(budget) for budget in (0.003, 0.01, 0.03, 0.1, 0.5)}


def test_a_larger_budget_never_makes_a_layer_denser(searched):
    found = [searched[budget].item.references for budget in sorted(searched)]
    for tight, loose in zip(found, found[1:], strict=False):
        assert all(b <= a for a, b in zip(tight, loose, strict=True))
    assert len(set(found)) > 2, "the budgets of this test should differ in their choices"


def error_of(item) -> float:
    """Mean relative squared error of the prediction at three moments."""
    program = tiny_video()
    after = run_passes(program, [item])
    errors = []
    for inputs in denoiser_inputs(program, requests(program)[0], 3):
        dense, tiled = (
            each.graphs["denoiser"].run(each.weights, inputs)["prediction"]
            for each in (program, after)
        )
        errors.append(float((tiled - dense).square().sum() / dense.square().sum()))
    return sum(errors) / 3


def test_the_joint_error_stays_within_the_budget_and_is_the_measured_one(searched):
    for budget, fit in searched.items():
        joint = fit.details["tiles"]["joint_error"]
        assert 0 < joint <= budget
        assert joint == pytest.approx(error_of(fit.item), rel=1e-9)


def test_errors_alone_are_of_one_layer_alone(searched):
    fit = searched[0.5]
    layers = fit.details["tiles"]["layers"]
    tiled = [place for place, count in enumerate(fit.item.references) if count < FRAMES]
    assert tiled
    for place in tiled:
        count = fit.item.references[place]
        alone = tuple(count if other == place else FRAMES for other in range(3))
        error = error_of(TileAttention(references=alone))
        assert layers[place]["error"] == pytest.approx(error, rel=1e-9)


def test_moments_are_spread_over_the_run():
    program = tiny_video(steps=8)
    times = program.tables["timestep"].ravel()
    found = denoiser_inputs(program, requests(program)[0], 4)
    assert [float(each["timestep"]) for each in found] == [times[step] for step in (1, 3, 5, 7)]
    assert len(denoiser_inputs(program, requests(program)[0], 64)) == 8
    # The latents are those of the run itself.
    run = program.watch(("latent",), **requests(program)[0])["latent"]
    assert torch.equal(found[1]["latent"], torch.from_numpy(run[2]))

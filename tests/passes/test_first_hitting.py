"""first_hitting: texts have the reverse process's law, whatever is computed of it.

4096 texts of three tokens against the enumerated law of the 27 possible ones, from a denoiser whose
logits are a random table of the whole state. Laws of other samplers must not fit.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from optimize.capture.from_masked import capture_masked_model
from optimize.ir.decode import Sampling
from optimize.ir.spec import check_program
from optimize.ir.unmask import UnmaskLoop
from optimize.passes.commit_early import CommitEarly
from optimize.passes.energy_resample import EnergyResample
from optimize.passes.first_hitting import FirstHitting
from optimize.runtime import load
from tests.passes.drawn_texts import p_value
from tests.passes.enumerated_reveals import (
    KINDS,
    LENGTH,
    MASK,
    TableDenoiser,
    ancestral_law,
    distance,
    filled_in,
    first_hitting_law,
    named,
    random_logits,
    start,
)

BATCH = 4096
FITS, DIFFERS = 1e-4, 1e-9
"""p-values above and below which texts have a law and do not."""

LOGITS = random_logits()
DRAWN = UnmaskLoop(MASK, LENGTH, max_prompt=0, remasking="random", sampling=Sampling(top_p=None))
EXACT = first_hitting_law(LOGITS)


def applied(program, **options):
    item = FirstHitting(**options)
    assert item.declines(program) is None
    after = item.rewrite(program).program
    check_program(after, "first_hitting")
    return after


def texts(program, template=(MASK,) * LENGTH, seed=0, batch=BATCH):
    return filled_in(program, template, seed, batch)["tokens"].numpy()


@pytest.fixture(scope="module")
def random():
    """One mask for each call, drawn at random."""
    return capture_masked_model(TableDenoiser(LOGITS).eval(), loop=DRAWN)


@pytest.fixture(scope="module")
def ancestral():
    """Coins, in four steps."""
    loop = replace(DRAWN, remasking="ancestral", steps=4)
    return capture_masked_model(TableDenoiser(LOGITS).eval(), loop=loop)


def test_steps_in_time_approach_the_process_as_their_number_grows():
    steps = (1, 2, 4, 16, 64, 256)
    found = [distance(ancestral_law(LOGITS, count), EXACT) for count in steps]
    assert EXACT.sum() == pytest.approx(1)
    assert found == sorted(found, reverse=True)
    # 1 / N: the last four times as many steps leave a quarter of the distance.
    assert found[-1] / found[-2] == pytest.approx(1 / 4, rel=0.01)
    assert found[0] > 0.3 and found[-1] < 0.005
    # Two at once are told from one, and all at once are one step.
    assert distance(first_hitting_law(LOGITS, (2, 1)), EXACT) > 0.3
    assert distance(first_hitting_law(LOGITS, (3,)), ancestral_law(LOGITS, 1)) < 1e-12


LAWS = {
    "one reveal": ({}, EXACT),
    "one reveal, all rows": ({"chosen_rows": False}, EXACT),
    "two reveals, then one": ({"calls": 2}, first_hitting_law(LOGITS, (2, 1))),
    "all at once": ({"calls": 1}, ancestral_law(LOGITS, 1)),
}


@pytest.mark.parametrize("name", LAWS)
def test_texts_have_the_law_of_their_groups(ancestral, name):
    options, law = LAWS[name]
    found = texts(applied(ancestral, **options))
    assert p_value(found, named(law)) > FITS
    for other in (EXACT, first_hitting_law(LOGITS, (2, 1)), ancestral_law(LOGITS, 4)):
        if distance(other, law) > 1e-12:
            assert p_value(found, named(other)) < DIFFERS


def test_texts_before_the_pass_have_the_law_of_coins(ancestral):
    found = np.concatenate([texts(ancestral, seed=seed) for seed in (1, 2)])
    assert p_value(found, named(ancestral_law(LOGITS, 4))) > FITS
    for other in (3, 5):
        assert p_value(found, named(ancestral_law(LOGITS, other))) < DIFFERS


def test_texts_of_a_random_order_have_the_law_of_the_process(random):
    """One reveal per call, temperature 1."""
    found = texts(random)
    assert p_value(found, named(EXACT)) > FITS
    assert p_value(found, named(ancestral_law(LOGITS, 4))) < DIFFERS


@pytest.mark.parametrize("chosen_rows", [True, False])
def test_identity_keeps_every_text_of_a_random_order(random, chosen_rows):
    item = FirstHitting(calls=2, chosen_rows=chosen_rows).identity()
    after = item.rewrite(random).program
    np.testing.assert_array_equal(texts(after), texts(random))


def test_identity_keeps_groups_of_a_random_order():
    loop = replace(DRAWN, steps=2)
    before = capture_masked_model(TableDenoiser(LOGITS).eval(), loop=loop)
    np.testing.assert_array_equal(texts(applied(before, keep_order=True)), texts(before))
    assert p_value(texts(before), named(first_hitting_law(LOGITS, (2, 1)))) > FITS


def test_a_certain_denoiser_gives_one_text_in_any_order():
    wanted = np.array([2, 0, 1])
    sure = np.broadcast_to(100.0 * np.eye(KINDS)[wanted], LOGITS.shape).copy()
    for remasking, steps in (("random", None), ("ancestral", 7)):
        loop = replace(DRAWN, remasking=remasking, steps=steps)
        program = capture_masked_model(TableDenoiser(sure).eval(), loop=loop)
        for after in (program, applied(program), applied(program, calls=1)):
            assert (texts(after, batch=64) == wanted).all()


def test_one_mask_takes_one_draw(ancestral):
    template = (0, MASK, 2)
    law = named(first_hitting_law(LOGITS, (1,), start(template)))
    after = applied(ancestral)
    uniforms = np.random.default_rng(0).random((LENGTH, 64, LENGTH))
    found = after(template=np.tile(template, (64, 1)), uniforms=uniforms, seed=0)
    # The only mask goes at the first call, by the first of its numbers.
    assert (found["calls"] == 1).all()
    shares = np.array([law[(0, token, 2)] for token in range(KINDS)])
    expected = np.searchsorted(shares.cumsum(), uniforms[0, :, 1])
    np.testing.assert_array_equal(found["tokens"][:, 1], expected)
    for program in (ancestral, after, applied(ancestral, calls=1)):
        assert p_value(texts(program, template), law) > FITS


def test_given_tokens_stay_and_masks_have_their_law(ancestral):
    template = (MASK, 1, MASK)
    law = first_hitting_law(LOGITS, (1, 1), start(template))
    found = filled_in(applied(ancestral), template, 3, BATCH)
    assert p_value(found["tokens"].numpy(), named(law)) > FITS
    assert (found["calls"] == 2).all()


def test_whole_texts_take_no_call_and_stay(ancestral):
    given = np.array([[0, 1, 2], [2, 2, 2]])
    found = applied(ancestral)(template=given, seed=0)
    np.testing.assert_array_equal(found["tokens"], given)
    assert (found["calls"] == 0).all()


class Clock(nn.Module):
    """Foretells the number of the time's bin at every place: texts say when they were revealed."""

    BINS = 400

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, input_ids: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        bins = torch.arange(self.BINS, device=input_ids.device)
        distance = (bins[None] + 0.5 - self.scale * timestep[:, None] * self.BINS).abs()
        return -distance[:, None].expand(-1, input_ids.shape[1], -1)


class Timeless(TableDenoiser):
    def forward(self, input_ids: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids)


class Chain(nn.Module):
    """Every row foretells by the mean of all rows, so that each reveal changes what is foretold."""

    MASK = 20

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed, self.head = nn.Embedding(self.MASK + 1, 8), nn.Linear(8, self.MASK)
            nn.init.normal_(self.head.weight, std=0.3)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        rows = self.embed(input_ids)
        logits: torch.Tensor = self.head(rows + 4 * rows.mean(1, keepdim=True))
        return logits


def chain(length: int, **options):
    loop = replace(DRAWN, mask_id=Chain.MASK, length=length, **options)
    return capture_masked_model(Chain().eval(), loop=loop)


def hitting_times(block: int, **options) -> np.ndarray:
    """[B, L] of eight tokens in blocks, as a clock sees them."""
    loop = UnmaskLoop(
        Clock.BINS,
        8,
        block_length=block,
        max_prompt=0,
        remasking="random",
        timestep="timestep",
        **options,
    )
    program = applied(capture_masked_model(Clock().eval(), loop=loop), chosen_rows=False)
    return (texts(program, (Clock.BINS,) * 8, batch=1024) + 0.5) / Clock.BINS


@pytest.mark.parametrize("block", [8, 4])
def test_a_model_that_looks_at_the_time_gets_the_hitting_times(block):
    times = hitting_times(block).reshape(-1, block)
    means = np.sort(times, -1)[:, ::-1].mean(0)
    left = np.arange(block, 0, -1)
    # Order statistics of uniforms, anew in every block; at most 3.5 standard deviations.
    deviation = np.sqrt(left * (block + 1 - left) / (block + 1) ** 2 / (block + 2) / len(times))
    assert (abs(means - left / (block + 1)) < 3.5 * deviation).all()


def test_sigma_is_a_function_of_the_hitting_time():
    shares = hitting_times(8)
    sigmas = hitting_times(8, time="sigma")
    early = shares < 0.6
    expected = -np.log1p(-shares[early])
    np.testing.assert_allclose(sigmas[early], expected, atol=3 / Clock.BINS)


def test_a_model_that_does_not_look_at_the_time_is_captured_without():
    loop = replace(DRAWN, timestep="timestep")
    program = capture_masked_model(Timeless(LOGITS).eval(), loop=loop)
    assert any("does not change the logits" in note for note in program.notes)
    after = applied(program)
    assert not {"tau", "time_uniforms", "timestep"} & set(after.graphs["step"].inputs)
    assert p_value(texts(after), named(EXACT)) > FITS


def test_blocks_are_filled_in_one_after_the_other_in_groups():
    program = applied(chain(12, block_length=6, remasking="ancestral"), calls=4)
    watched = program.watch(("text",), seed=0, template=np.full((32, 12), Chain.MASK))["text"]
    masked = np.stack(watched) == Chain.MASK
    np.testing.assert_array_equal(masked[:, :, :6].sum(-1)[:, 0], [4, 2, 1, 0, 0, 0, 0, 0])
    assert (masked[:, :, :6].sum(-1) == masked[:, :1, :6].sum(-1)).all()
    np.testing.assert_array_equal(masked[4:, 0, 6:].sum(-1), [4, 2, 1, 0])
    assert masked[:4, :, 6:].all()


def test_extrapolation_carries_on_the_second_call_of_each_block():
    before = chain(12, block_length=6)
    options = {"chosen_rows": False, "calls": 2}
    plain, carried = (applied(before, **options, extrapolate=carry) for carry in (False, True))
    assert any("experimental" in note for note in carried.notes)
    template = (Chain.MASK,) * 12
    first, second = (texts(program, template, batch=64) for program in (plain, carried))
    assert ((second >= 0) & (second < Chain.MASK)).all()
    # Three tokens of the block are of its first call, one of the rest goes when the second is made.
    same = (first == second)[:, :6].sum(-1)
    assert (same >= 4).all() and (same < 6).any()


def test_extrapolation_of_one_group_is_the_plain_prediction(ancestral):
    options = {"chosen_rows": False, "calls": 1}
    plain, carried = (applied(ancestral, **options, extrapolate=carry) for carry in (False, True))
    np.testing.assert_array_equal(texts(carried), texts(plain))


def test_a_bundle_draws_the_same_texts(ancestral, tmp_path):
    after = applied(ancestral)
    after.export(tmp_path / "bundle")
    template = np.full((16, LENGTH), MASK)
    with load(tmp_path / "bundle", threads=1) as session:
        found = session(template=template, seed=5)["tokens"]
    np.testing.assert_array_equal(found, after(template=template, seed=5)["tokens"])


@pytest.mark.parametrize("options", [{}, {"calls": 2}], ids=["one", "two"])
def test_its_own_checks_hold(ancestral, options):
    item = FirstHitting(**options)
    made = item.rewrite(ancestral)
    request = {"template": np.full((8, LENGTH), MASK), "seed": 1}
    assert all(item.holds for item in item.oracles(ancestral, made.program, request))
    assert made.details["exact"] == (not options)
    assert made.details["calls"] == options.get("calls", LENGTH)


def test_declines_where_it_would_change_the_law(ancestral, random):
    sure = replace(ancestral, unmasking=replace(ancestral.unmasking, loop=UnmaskLoop(MASK, LENGTH)))
    commits = CommitEarly().rewrite(random).program
    resamples = EnergyResample(window=(1.0, 0.0)).rewrite(random).program
    reasons = [
        (FirstHitting(), replace(random, unmasking=None), "does not fill in masked text"),
        (FirstHitting(), sure, "'low_confidence' fills in first what the model is sure of"),
        (FirstHitting(), applied(random), "follows first hitting already"),
        (FirstHitting(), commits, "put first_hitting before it"),
        (FirstHitting(), resamples, "put first_hitting before it"),
        (FirstHitting(keep_order=True), ancestral, "keep_order is for remasking 'random'"),
        (FirstHitting(calls=4), random, "found calls 4 for blocks of 3 tokens"),
    ]
    for item, program, reason in reasons:
        assert reason in (item.declines(program) or ""), reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calls": 0}, "calls: found 0, expected at least 1"),
        ({"calls": 2, "keep_order": True}, "calls: found 2 with keep_order"),
        ({"extrapolate": True}, "extrapolate: found it with chosen_rows"),
    ],
    ids=["calls", "keep_order", "extrapolate"],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FirstHitting(**options)

"""The rules of filling in masked text, held against closed forms and enumeration."""

from itertools import combinations

import numpy as np
import pytest
import torch

from optimize.capture.unmask_loop import tables_of
from optimize.ir import unmask_rules as rules
from optimize.ir.decode import Sampling
from optimize.ir.errors import InputModelError
from optimize.ir.unmask import Commit, FirstHitting, Unmasking, UnmaskLoop, even_groups

GENERATOR = np.random.default_rng(0)
MASK = 9


def uniform(*shape: int) -> torch.Tensor:
    return torch.from_numpy(GENERATOR.random(shape))


def test_hitting_times_are_order_statistics():
    """Of eight masks the means are n / 9."""
    count, draws = 8, 50_000
    times = rules.hitting_times(
        torch.ones(draws).double(),
        torch.full((draws,), count),
        uniform(draws, count),
        torch.ones(draws, count, dtype=torch.bool),
    ).numpy()
    left = np.arange(count, 0, -1)
    deviation = np.sqrt(left * (count + 1 - left) / (count + 1) ** 2 / (count + 2) / draws)
    assert (abs(times.mean(0) - left / (count + 1)) < 4 * deviation).all()
    assert (np.diff(times) <= 0).all()
    # Not with the masks that are left after the reveal, nor with those at the start.
    for wrong in (np.maximum(left - 1, 1), np.full(count, count)):
        other = np.exp(np.cumsum(np.log(GENERATOR.random((draws, count))) / wrong, -1)).mean(0)
        assert (abs(other - left / (count + 1)) > 4 * deviation).any()


def test_hitting_times_go_on_from_call_to_call():
    uniforms = uniform(5, 4)
    every = torch.ones(5, 4, dtype=torch.bool)
    masks = torch.tensor([4, 5, 6, 7, 8])
    whole = rules.hitting_times(torch.ones(5).double(), masks, uniforms, every)
    first = rules.hitting_times(torch.ones(5).double(), masks, uniforms[:, :2], every[:, :2])
    second = rules.hitting_times(first[:, -1], masks - 2, uniforms[:, 2:], every[:, 2:])
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-14)
    few = rules.hitting_times(torch.ones(5).double(), masks, uniforms, every & (masks[:, None] > 9))
    assert (few == 1).all()


def test_random_places_are_uniform_without_replacement_in_each_row():
    masked = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 1]]).bool().repeat(20_000, 1)
    places, which = rules.random_places(masked, uniform(*masked.shape), torch.tensor(2), 3)
    assert which[:, :2].all() and not which[:, 2].any()
    chosen = np.sort(places[:, :2].numpy(), -1)
    for row in range(2):
        found, counts = np.unique(chosen[row::2], axis=0, return_counts=True)
        pairs = list(combinations(masked[row].nonzero()[:, 0].tolist(), 2))
        assert list(map(tuple, found.tolist())) == pairs
        # Six pairs: four standard deviations of a binomial.
        assert (abs(counts / 20_000 - 1 / 6) < 4 * np.sqrt(1 / 6 * 5 / 6 / 20_000)).all()
    np.testing.assert_array_equal(chosen[0::2] < 4, True)
    assert len(np.unique(chosen[0:40:2], axis=0)) > 1


def test_random_places_are_no_more_than_there_are_masks():
    masked = torch.tensor([[False, True, False], [False, False, False], [True, True, True]])
    places, which = rules.random_places(masked, uniform(3, 3), torch.tensor(2), 2)
    assert which.sum(-1).tolist() == [1, 0, 2]
    assert places[0, 0] == 1
    text = torch.where(masked, MASK, 5)
    after = rules.put(text, places, torch.full((3, 2), 7), which)
    assert after[0].tolist() == [5, 7, 5] and after[1].tolist() == [5, 5, 5]
    assert sorted(after[2].tolist()) == [7, 7, MASK]


def test_largest_takes_the_first_of_equal_ones():
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0, 2.0], [-1e9, 0.0, 0.0, 5.0, 5.0]])
    among = torch.tensor([[1, 0, 1, 1, 1], [1, 1, 1, 0, 1]]).bool()
    for count, expected in (
        ([1, 2], [[2], [1, 4]]),
        ([2, 3], [[2, 3], [1, 2, 4]]),
        ([0, 9], [[], [0, 1, 2, 4]]),
    ):
        found = rules.largest(scores, among, torch.tensor(count))
        assert [row.nonzero()[:, 0].tolist() for row in found] == expected


@pytest.mark.parametrize("calls", [1, 3, 4, 7])
def test_shares_sum_to_the_masks_at_the_start_of_a_block(calls):
    masks = torch.arange(12)
    shares = torch.stack(
        [rules.share_of_masks(masks, torch.tensor(place), calls) for place in range(calls)]
    )
    assert shares.sum(0).tolist() == masks.tolist()
    # The first m % calls take one more, as in the published loop.
    assert (shares.max(0).values - shares.min(0).values <= 1).all()
    assert (shares[:-1] >= shares[1:]).all()
    for count in range(1, 12):
        groups = even_groups(count, calls)
        assert list(groups) == shares[:, count].tolist()


def test_thresholds_fall_with_the_share_of_the_calls():
    """Those of Prophet."""
    commit = Commit((7.5, 5.0, 2.5), (0.33, 0.67))
    found = [commit.threshold(call, 10_000) for call in (3299, 3300, 6699, 6700)]
    assert found == [7.5, 5.0, 5.0, 2.5]
    assert [commit.threshold(call, 3) for call in (1, 2, 3)] == [5.0, 5.0, 2.5]
    unmasking = Unmasking(UnmaskLoop(MASK, 6, block_length=3), MASK, commit=commit)
    # 1/6, ..., 6/6 over all blocks.
    assert tables_of(unmasking)["threshold"].tolist() == [7.5, 5.0, 5.0, 5.0, 2.5, 2.5]


def test_tables_have_a_row_for_every_call():
    loop = UnmaskLoop(MASK, 6, block_length=3, steps=8, remasking="ancestral")
    found = tables_of(Unmasking(loop, MASK))
    assert found["block"].tolist() == [0] * 4 + [1] * 4
    assert found["place"].tolist() == [0, 1, 2, 3] * 2
    assert found["masked_share"].tolist() == [1, 0.75, 0.5, 0.25] * 2
    # The chance of staying is s / t, of all steps together 0.
    np.testing.assert_allclose(1 - found["reveal"], [3 / 4, 2 / 3, 1 / 2, 0] * 2)
    groups = tables_of(Unmasking(loop, MASK, first_hitting=FirstHitting((2, 1))))
    assert groups["count"].tolist() == [2, 1] * 2
    np.testing.assert_allclose(groups["masked_share"], [1, 1 / 3] * 2)


@pytest.mark.parametrize(
    ("masked_only", "region", "expected"),
    [
        (False, [1, 1, 0, 0], [True, False, True]),
        (True, [1, 1, 0, 0], [False, False, True]),
        (True, [1, 1, 1, 1], [True, False, True]),
    ],
    ids=["region", "masked", "all that is masked"],
)
def test_certain_where_the_mean_gap_reaches_the_threshold(masked_only, region, expected):
    gaps = torch.tensor([[4.0, 1.0, 9.0, 0.5], [1.0, 1.0, 1.0, 1.0], [3.0, 2.0, 9.0, 9.0]])
    # Third largest logits do not matter, wherever they stand.
    logits = torch.stack([gaps - 1, torch.full_like(gaps, -1), torch.full_like(gaps, -3)], -1)
    masked = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 1], [0, 0, 0, 0]]).bool()
    found = rules.is_certain(
        logits, masked, torch.tensor(region).bool(), torch.tensor(2.5), masked_only
    )
    assert found.tolist() == expected


def test_fragments_are_whole_blocks_and_sent_once():
    text = torch.tensor([[1, 2, 3, 4, 5, MASK], [MASK, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]])
    tokens, emitted, sent = rules.fragment(text, MASK, 2, torch.tensor([0, 0, 2]))
    assert emitted.tolist() == [4, 0, 4] and sent.tolist() == [4, 0, 6]
    assert tokens[0, :4].tolist() == [1, 2, 3, 4] and tokens[2, :4].tolist() == [3, 4, 5, 6]
    _, again, sent = rules.fragment(text, MASK, 2, sent)
    assert again.tolist() == [0, 0, 0] and sent.tolist() == [4, 0, 6]


def test_extrapolation_is_linear_in_time_and_clamped():
    logits, previous = (torch.from_numpy(GENERATOR.normal(size=(2, 3, 4))) for _ in range(2))
    plain, before = (torch.log_softmax(item, -1) for item in (logits, previous))
    tau, previous_tau = torch.tensor([[0.6, 0.3], [0.8, 0.5]], dtype=torch.float64)
    times = torch.tensor([[0.6, 0.5, 0.0], [0.3, 0.2, 0.1]], dtype=torch.float64)
    shares = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)[None, :, None]
    found = rules.extrapolated(logits, previous, times, tau, previous_tau)
    torch.testing.assert_close(found, plain + shares * (plain - before))


def test_extrapolation_without_a_call_before_is_the_plain_prediction():
    logits, previous = (torch.from_numpy(GENERATOR.normal(size=(2, 3, 4))) for _ in range(2))
    logits[..., 1] = float("-inf")
    tau = torch.tensor([0.6, 0.3]).double()
    times = tau[:, None] * torch.tensor([1.0, 0.5, 0.2]).double()
    found = rules.extrapolated(logits, previous, times, tau, tau)
    torch.testing.assert_close(found, torch.log_softmax(logits, -1))
    before = rules.extrapolated(logits, logits, times, tau, tau + 0.1)
    torch.testing.assert_close(before, torch.log_softmax(logits, -1))


def test_text_logits_leave_the_mask_out():
    logits = torch.zeros(1, 2, 6)
    inside = rules.text_logits(logits, 3, 6)
    assert inside[0, 0].tolist() == [0, 0, 0, float("-inf"), 0, 0]
    assert rules.text_logits(logits, 5, 4).shape == (1, 2, 4)


def test_certainties_are_the_published_scores():
    logits = torch.from_numpy(GENERATOR.normal(size=(3, 4, 5)))
    tokens = logits.argmax(-1)
    shares = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(-1, keepdims=True)
    best = np.sort(shares, -1)
    expected = {
        "low_confidence": best[..., -1],
        "margin": best[..., -1] - best[..., -2],
        "entropy": (shares * np.log(shares)).sum(-1),
    }
    for kind, scores in expected.items():
        np.testing.assert_allclose(rules.certainty(kind, logits, tokens), scores, atol=1e-6)


def test_the_best_is_drawn_with_weights_that_fall_with_the_energy():
    energies = torch.tensor([0.0, 1.0, 2.0, 5.0, 5.0, 5.0]).double()
    texts = torch.arange(6)[:, None].expand(-1, 2)
    for temperature in (1.0, 2.0):
        weights = np.exp(-np.array([0.0, 1.0, 2.0]) / temperature)
        ends = (weights / weights.sum()).cumsum()
        for token, (low, high) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            for place in (low + 1e-9, high - 1e-9):
                uniforms = torch.tensor([place, token / 3 + 0.1]).double()
                found = rules.resampled(texts, energies, uniforms, temperature)
                assert found.tolist() == [[token] * 2, [3 + token] * 2]


RARE, SHARE = 64, 8e-6
"""Classes that share a small probability, beside one with the rest."""


def float32_rare_events(draws: int, chunk: int = 500_000) -> int:
    """How often the exponential form in float32 takes a rare class.

    The published draw is the largest of pi / E with E = -log u of every class. Of the rare ones
    only the smallest E, that is the largest u, matters: the largest of 64 numbers on the grid
    k / 2^24 is drawn by its own law, so that a draw takes two numbers rather than 65.
    """
    found = 0
    for start in range(0, draws, chunk):
        count = min(chunk, draws - start)
        best = np.floor(GENERATOR.random(count) ** (1 / RARE) * 2**24) / 2**24
        other = GENERATOR.random(count, dtype=np.float32)
        rare = np.float32(SHARE / RARE) / (np.float32(1e-10) - _log(best.astype(np.float32)))
        rest = np.float32(1 - SHARE) / (np.float32(1e-10) - _log(other))
        found += int((rare > rest).sum())
    return found


def _log(uniforms: np.ndarray) -> np.ndarray:
    return np.log(uniforms + np.float32(1e-10))


def test_noise_in_float32_loses_rare_classes():
    """234 of 320 in 4e7 draws, -27%; the law of the grid says 249.7."""
    draws = 40_000_000
    exact = draws * SHARE
    each = 2.0**-24 / (SHARE / RARE)
    grid = exact * each / (np.exp(each) - 1)
    assert grid == pytest.approx(249.7, abs=0.1)
    found = float32_rare_events(draws)
    assert abs(found - grid) < 3 * np.sqrt(grid)
    assert found < exact - 3 * np.sqrt(exact)


def test_draws_in_float64_keep_rare_classes():
    """Stratified numbers: so many fall into the rare classes as the law says, give or take one."""
    draws = 40_000_001
    shares = np.array([*[SHARE / RARE] * (RARE // 2), 1 - SHARE, *[SHARE / RARE] * (RARE // 2)])
    logits = torch.from_numpy(np.log(shares))
    # Of the numbers (i + 1/2) / draws those near both ends, where the rare classes are.
    near = (np.concatenate([np.arange(700), np.arange(draws - 700, draws)]) + 0.5) / draws
    found = rules.drawn(
        logits.expand(1, len(near), -1),
        Sampling(top_p=None),
        torch.from_numpy(near)[None],
        torch.tensor(1.0),
    )
    rare = int((found != RARE // 2).sum())
    assert draws * SHARE == pytest.approx(320, abs=1e-4)
    assert abs(rare - 320) <= 1
    # Each class has its own share, too: what lies between its ends.
    ends = shares.cumsum()
    np.testing.assert_array_equal(found[0].numpy(), np.searchsorted(ends, near))


def truncated(shares: np.ndarray, largest: float) -> np.ndarray:
    """The law of a Gumbel maximum whose noise ends at a number."""
    order = np.argsort(shares)
    ordered = shares[order]
    epsilon, count = np.exp(-largest), len(shares)
    tails = ordered[::-1].cumsum()[::-1]
    index = np.arange(1, count + 1)
    # Exponents of both terms together: each is below 0, their prefactor above.
    first = np.exp((count - index + 1) * epsilon - epsilon * tails / ordered)
    before = np.concatenate([[0.0], ordered[:-1]])
    with np.errstate(divide="ignore"):
        second = np.exp((count - index + 1) * epsilon - epsilon * tails / before)
    found = np.empty(count)
    found[order] = ordered * ((first - second) / tails).cumsum()
    return found


def entropy(shares: np.ndarray) -> float:
    return float(-(shares * np.log(shares)).sum())


def test_the_closed_form_of_ended_noise_is_that_of_draws():
    shares, draws = np.array([0.6, 0.25, 0.1, 0.05]), 1_000_000
    law = truncated(shares, 1.0)
    np.testing.assert_allclose(law, [0.8174, 0.1729, 0.00962, 0.000139], atol=1e-4)
    # Gumbel numbers below 1 are those of u < exp(-exp(-1)); beyond it they are all 1 in neither.
    uniforms = GENERATOR.random((draws, 4)) * np.exp(-np.exp(-1))
    found = np.bincount((np.log(shares) - np.log(-np.log(uniforms))).argmax(-1), minlength=4)
    assert (abs(found / draws - law) < 4 * np.sqrt(law / draws)).all()
    np.testing.assert_allclose(truncated(shares, 40.0), shares, atol=1e-12)


@pytest.mark.parametrize(
    ("steps", "expected"), [(100, 5.183), (1000, 5.111), (10_000, 4.548), (100_000, 3.153)]
)
def test_steps_in_float32_lower_the_temperature(steps, expected):
    """One step at t = 0.5 of Zipf's law of 1000 tokens."""
    zipf = 1 / np.arange(1, 1001)
    zipf /= zipf.sum()
    assert entropy(zipf) == pytest.approx(5.191, abs=5e-4)
    largest = -np.log(-np.log1p(-(2.0**-24)))
    assert largest == pytest.approx(16.6355, abs=1e-4)
    step = 1 / steps
    tokens = truncated(np.append(zipf * step, 0.5 - step) / 0.5, largest)[:-1]
    tokens /= tokens.sum()
    assert entropy(tokens) == pytest.approx(expected, abs=5e-4)
    if steps >= 10_000:
        moved = {10_000: 0.127, 100_000: 0.365}[steps]
        assert abs(tokens - zipf).sum() / 2 == pytest.approx(moved, abs=5e-4)


def test_draws_keep_the_entropy_that_noise_in_bfloat16_loses():
    """A million draws of Zipf's law of 32 tokens: the distance is that of chance, not 0.026."""
    zipf = 1 / torch.arange(1, 33, dtype=torch.float64)
    zipf /= zipf.sum()
    logits = zipf.log().float()
    generator = torch.Generator().manual_seed(0)
    counts, rounded = torch.zeros(32), torch.zeros(32)
    for _ in range(20):
        uniforms = torch.rand(1, 50_000, generator=generator, dtype=torch.float64)
        drawn = rules.drawn(
            logits.expand(1, 50_000, 32), Sampling(top_p=None), uniforms, torch.ones(())
        )
        counts += torch.bincount(drawn.flatten(), minlength=32)
        noise = torch.rand(50_000, 32, generator=generator, dtype=torch.bfloat16)
        scores = logits.bfloat16() - torch.log(-torch.log(noise))
        rounded += torch.bincount(scores.argmax(-1), minlength=32)
    distance, distance_rounded = (
        float((item / 1e6 - zipf).abs().sum() / 2) for item in (counts, rounded)
    )
    assert distance < 0.0035
    assert distance_rounded > 0.015


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length 0"),
        ({"block_length": 5}, r"block_length 5, which does not divide length 8.*1, 2, 4, 8"),
        ({"block_length": 2, "steps": 6}, "6 steps for 4 blocks.*multiple of 4"),
        ({"steps": 0}, "steps 0"),
        ({"mask_id": -1}, "mask_id -1"),
        ({"vocabulary": 10}, r"mask_id 9 inside the vocabulary of text, \[0, 10\)"),
        ({"remasking": "sure"}, "remasking 'sure', expected one of low_confidence"),
        ({"time": "tau"}, "time 'tau', expected one of t, sigma"),
        ({"max_prompt": True}, "max_prompt True"),
    ],
    ids=lambda item: "-".join(item) if isinstance(item, dict) else None,
)
def test_loops_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputModelError, match=message):
        UnmaskLoop(**{"mask_id": MASK, "length": 8, **options})

"""Allocation of samples to prompts: published figures, optimality, rounding, unbiasedness."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binom

from optimize.recipes.fit.gvm import (
    allocate,
    expected_misses,
    head_gradient_norms,
    objective,
    probe_statistics,
    sample_weights,
    sampling_weights,
)

G = np.array([1, 2, 0.5, 3, 1.5, 1])
P = np.array([0.9, 0.5, 0.1, 0.05, 0.3, 0.7])
N = 240
UNIFORM = np.full(6, 40)


def _shares(**options):
    weights = sampling_weights(G, P, **options)
    return N * weights / weights.sum()


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0, (11.09, 29.75, 16.63, 141.14, 28.81, 12.57)),
        (1e-3, (12.25, 32.82, 17.53, 131.85, 31.67, 13.88)),
        (1e-2, (17.08, 45.22, 18.23, 97.82, 42.36, 19.29)),
    ],
)
def test_published_allocation(alpha, expected):
    np.testing.assert_allclose(_shares(alpha=alpha), expected, atol=0.005)
    found = allocate(G, P, N, alpha=alpha)
    assert found.sum() == N
    assert found.dtype == np.int64
    assert np.abs(found - expected).max() < 1


def test_published_objectives():
    plain, regular = _shares(alpha=0), _shares()
    assert objective(G, P, plain) == pytest.approx(2.16864, abs=5e-6)
    assert objective(G, P, UNIFORM) == pytest.approx(5.01349, abs=5e-6)
    assert objective(G, P, regular, alpha=1e-3) == pytest.approx(1.77508, abs=5e-6)
    assert objective(G, P, UNIFORM, alpha=1e-3) == pytest.approx(3.71913, abs=5e-6)
    assert objective(G, P, regular) == pytest.approx(2.18201, abs=5e-6)


@pytest.mark.parametrize("alpha", [0, 1e-3])
def test_no_allocation_nearby_is_better(alpha):
    random = np.random.default_rng(0)
    best = _shares(alpha=alpha)
    for _ in range(2000):
        other = best * (1 + 0.05 * random.normal(size=6))
        other *= N / other.sum()
        assert objective(G, P, other, alpha=alpha) >= objective(G, P, best, alpha=alpha)


def test_variance_with_random_numbers_of_accepted_samples():
    """The simulated 5.070, 2.432 and 2.487, as exact expectations of the rounded allocations."""

    def expectation(samples):
        total = 0.0
        for norm, rate, count in zip(G, P, samples, strict=True):
            accepted = np.arange(1, count + 1)
            total += norm**2 * (binom.pmf(accepted, count, rate) / accepted).sum()
        return total

    assert expectation(UNIFORM) == pytest.approx(5.070, rel=0.01)
    assert expectation(allocate(G, P, N, alpha=0)) == pytest.approx(2.432, rel=0.01)
    assert expectation(allocate(G, P, N)) == pytest.approx(2.487, rel=0.01)


def test_plain_cases():
    assert allocate([2, 2, 2], [0.3, 0.3, 0.3], 12).tolist() == [4, 4, 4]
    assert allocate([1, 2, 3], [1, 1, 1], 12, alpha=0).tolist() == [2, 4, 6]
    assert allocate([1, 2, 3], [1, 1, 1], 12).tolist() == [2, 4, 6]
    assert allocate([1, 0, 1], [0.5, 0.5, 0], 7).tolist() == [7, 0, 0]
    doubled = sampling_weights(G * [2, 1, 1, 1, 1, 1], P)
    np.testing.assert_allclose(doubled, sampling_weights(G, P) * [2, 1, 1, 1, 1, 1])
    weighted = sampling_weights(G, P, weights=[2, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(weighted, doubled)


def test_the_budget_is_kept_and_the_order_of_prompts_does_not_matter():
    random = np.random.default_rng(1)
    for budget in (0, 1, 5, 17, 240, 1001):
        norms, rates = random.gamma(2, size=7), random.uniform(0.02, 1, size=7)
        found = allocate(norms, rates, budget)
        assert found.sum() == budget
        exact = sampling_weights(norms, rates)
        assert np.abs(found - budget * exact / exact.sum()).max() < 1
        order = random.permutation(7)
        assert allocate(norms[order], rates[order], budget).tolist() == found[order].tolist()


def test_of_equal_rests_the_first_prompts_get_more():
    assert allocate([1, 1, 1], [0.5] * 3, 4).tolist() == [2, 1, 1]
    assert allocate([1, 1, 1], [0.5] * 3, 5).tolist() == [2, 2, 1]
    assert allocate([1, 1], [0.5] * 2, 3).tolist() == [2, 1]


def test_most_go_to_the_rate_sqrt_alpha_and_with_large_alpha_to_easy_prompts():
    rates = np.linspace(0.001, 1, 1000)
    weights = sampling_weights(np.ones(1000), rates, alpha=1e-2)
    assert rates[weights.argmax()] == pytest.approx(0.1)
    easy = sampling_weights(np.ones(1000), rates, alpha=1e9)
    np.testing.assert_allclose(easy * 1e9**0.5, np.sqrt(rates), rtol=1e-6)


def test_cost():
    np.testing.assert_allclose(_shares(cost=np.full(6, 3.0)), _shares())
    cost = np.array([1, 2, 3, 4, 5, 6.0])
    found = _shares(cost=cost)
    np.testing.assert_allclose(_shares(cost=10 * cost), found)
    # Nothing of the same cost is better.
    random = np.random.default_rng(2)
    for _ in range(500):
        other = found * (1 + 0.05 * random.normal(size=6))
        other *= (cost @ found) / (cost @ other)
        assert objective(G, P, other, alpha=1e-3) >= objective(G, P, found, alpha=1e-3)


def test_floors_and_caps():
    found = allocate(G, P, N, floor=22, cap=80)
    assert found.sum() == N
    assert found.min() == 22 and found.max() == 80
    # Between the bounds the numbers stay proportional to the weights.
    free = (found > 22) & (found < 80)
    scale = found[free] / sampling_weights(G, P)[free]
    assert free.sum() == 3
    assert scale.max() / scale.min() < 1.04
    # No swap of one sample within the bounds is better.
    for taken, given in itertools.permutations(range(6), 2):
        other = found.copy()
        other[taken] -= 1
        other[given] += 1
        if other.min() >= 22 and other.max() <= 80:
            assert objective(G, P, other, alpha=1e-3) > objective(G, P, found, alpha=1e-3) - 1e-3
    kept = allocate([1, 1, 1], [0.5, 0.5, 0], 10, floor=[0, 0, 2])
    assert kept.tolist() == [4, 4, 2]
    assert allocate([1, 1], [0.5, 0.5], 10, cap=[3, 20]).tolist() == [3, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_norms": [0, 0]}, "no prompt with a positive gradient norm"),
        ({"acceptance_rates": [0, 0]}, "no prompt with a positive gradient norm"),
        ({"acceptance_rates": [0.5, 1.5]}, "acceptance rate 1.5"),
        ({"acceptance_rates": [0.5]}, r"acceptance_rates of shape \[1\], expected 2 numbers"),
        ({"gradient_norms": [1, -1]}, "gradient_norms .*expected finite"),
        ({"gradient_norms": [1, np.nan]}, "gradient_norms .*expected finite"),
        ({"budget": 2.5}, "budget 2.5"),
        ({"alpha": -1}, "alpha -1"),
        ({"cost": [1, 0]}, "cost 0.0, expected positive"),
        ({"floor": 6}, "budget 10, expected 12 to 20"),
        ({"cap": 4}, "budget 10, expected 0 to 8"),
        ({"floor": 5, "cap": 4}, "floor of 5 above the cap"),
        ({"floor": 0.5}, "floor 0.5, expected a whole number"),
        ({"gradient_norms": [1, 0], "cap": 6}, "budget 10, expected 0 to 6"),
    ],
)
def test_refused(options, message):
    given = {"gradient_norms": [1, 2], "acceptance_rates": [0.5, 0.5], "budget": 10}
    with pytest.raises(ValueError, match=message):
        allocate(**given | options)


def test_a_probe_gives_no_prompt_up():
    probe = probe_statistics([[1.0, 3.0], [], [6.0], [4.0] * 8], 8)
    np.testing.assert_allclose(probe.acceptance_rates, [0.3, 0.1, 0.2, 0.9])
    # Means 2, 6 and 4 have the mean and the median 4.
    np.testing.assert_allclose(probe.gradient_norms, [8 / 3, 4, 5, 4])
    plain = probe_statistics([[1.0, 3.0], [6.0]], 8, shrinkage=0)
    assert plain.gradient_norms.tolist() == [2, 6]
    with pytest.raises(ValueError, match=r"samples \[0, 0\] of 8 drawn"):
        probe_statistics([[], []], 8)
    with pytest.raises(ValueError, match=r"samples \[3\] of 2 drawn"):
        probe_statistics([[1, 1, 1]], 2)


@pytest.mark.parametrize("bias", [False, True])
def test_norms_of_a_linear_head_are_those_of_autograd(bias):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 11, bias=bias).double()
    states, labels = torch.randn(3, 6, 8).double(), torch.randint(11, (3, 6))
    mask = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
    with torch.no_grad():
        a = torch.softmax(head(states), -1) - torch.nn.functional.one_hot(labels, 11)
    found = head_gradient_norms(states, a * mask[..., None], bias=bias)
    for sample in range(3):
        head.zero_grad()
        own = mask[sample]
        torch.nn.functional.cross_entropy(
            head(states[sample, own]), labels[sample, own], reduction="sum"
        ).backward()
        gradients = torch.cat([item.grad.flatten() for item in head.parameters()])
        assert found[sample] == pytest.approx(float(gradients.norm()), rel=1e-12)
    with pytest.raises(ValueError, match=r"expected \[B, S, D\] and \[B, S, V\]"):
        head_gradient_norms(states[0], a)


RATES, GRADIENTS = np.array([0.9, 0.4, 0.2]), np.array([1.0, -2.0, 3.0])


def _expectation(samples, weigh):
    """Over all numbers of accepted samples; `weigh` gives a weight to each sample."""
    prompts = np.repeat(np.arange(3), samples)
    total = 0.0
    for counts in itertools.product(*(range(count + 1) for count in samples)):
        share = binom.pmf(counts, samples, RATES).prod()
        accepted = np.concatenate(
            [np.arange(count) < passed for count, passed in zip(samples, counts, strict=True)]
        )
        total += share * (weigh(prompts, accepted) @ GRADIENTS[prompts])
    return total


def _pooled(prompts, accepted):
    return accepted / max(1, accepted.sum())


def _by_prompt(prompts, accepted):
    return sample_weights(prompts, accepted, 3)


def _corrected(prompts, accepted):
    return sample_weights(prompts, accepted, 3, acceptance_rates=RATES)


@pytest.mark.parametrize(
    ("samples", "pooled"), [((40, 40, 40), 0.469), ((10, 20, 90), 1.337)], ids=str
)
def test_the_mean_over_prompts_is_unbiased_for_any_allocation(samples, pooled):
    prompts = np.repeat(np.arange(3), samples)
    random = np.random.default_rng(0)
    found = np.zeros((2, 4000))
    for number in range(4000):
        accepted = random.random(len(prompts)) < RATES[prompts]
        noisy = GRADIENTS[prompts] + 0.1 * random.normal(size=len(prompts))
        found[0, number] = _by_prompt(prompts, accepted) @ noisy
        found[1, number] = _pooled(prompts, accepted) @ noisy
    error = found.std(1) / 4000**0.5
    assert abs(found[0].mean() - 2 / 3) < 4 * error[0] + 3e-4
    assert abs(found[1].mean() - pooled) < 4 * error[1] + 1e-3


def test_prompts_without_an_accepted_sample_count_for_more_when_they_have_one():
    """In small: the expectation over all outcomes, exactly."""
    samples = (3, 4, 5)
    missed = (1 - RATES) ** samples
    plain = (GRADIENTS * (1 - missed)).mean()
    assert _expectation(samples, _by_prompt) == pytest.approx(plain, abs=1e-12)
    assert _expectation(samples, _corrected) == pytest.approx(2 / 3, abs=1e-12)
    assert expected_misses(RATES, samples) == pytest.approx(missed.sum(), abs=1e-15)


def test_published_bias_of_a_prompt_that_is_often_missed():
    samples = np.array([90, 20, 10])
    missed = (1 - RATES) ** samples
    assert missed[2] == pytest.approx(0.107, abs=5e-4)
    prompts = np.repeat(np.arange(3), samples)
    random = np.random.default_rng(1)
    found = np.zeros((2, 4000))
    for number in range(4000):
        accepted = random.random(len(prompts)) < RATES[prompts]
        found[0, number] = _by_prompt(prompts, accepted) @ GRADIENTS[prompts]
        found[1, number] = _corrected(prompts, accepted) @ GRADIENTS[prompts]
    error = found.std(1) / 4000**0.5
    assert abs(found[0].mean() - 0.560) < 4 * error[0] + 1e-3
    assert abs(found[1].mean() - 2 / 3) < 4 * error[1]


def test_weights_of_samples():
    found = sample_weights([0, 0, 1, 1, 1], [True, False, True, True, False], 3)
    np.testing.assert_allclose(found, [1 / 3, 0, 1 / 6, 1 / 6, 0])
    found = sample_weights([0, 1], [True, True], 2, weights=[3, 5])
    assert found.tolist() == [3, 5]
    with pytest.raises(ValueError, match=r"prompts in \[0, 2\)"):
        sample_weights([0, 2], [True, True], 2)

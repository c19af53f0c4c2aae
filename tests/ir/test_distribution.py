"""Distributions of tokens keep what the choice of a token keeps, and draws follow them."""

import itertools

import pytest
import torch

from optimize.capture.decode_steps import draw
from optimize.ir.decode import Sampling
from optimize.ir.distribution import distribution, draws, draws_without_replacement, pick

CASES = [(None, 1.0), (None, 0.6), (3, 1.0), (3, 0.7), (50, 0.9), (1, 1.0)]


@pytest.mark.parametrize(("top_k", "top_p"), CASES)
@pytest.mark.parametrize("vocabulary", [5, 40])
def test_tokens_drawn_are_those_with_a_probability(top_k, top_p, vocabulary):
    """Each uniform draws the token whose share of the sorted distribution holds it."""
    torch.manual_seed(0)
    logits = torch.randn(4, vocabulary)
    temperature, top = torch.tensor([0.7, 1.0, 1.3, 2.0]), torch.full((4,), top_p)
    found = distribution(logits, temperature, top, top_k)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.sum(-1), torch.ones(4).double(), rtol=0, atol=1e-14)
    # The noise whose normal distribution function is in the middle of 4000 equal parts.
    count = 4000
    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    noise = torch.special.ndtri(uniforms)
    sampling = Sampling(top_k=top_k)
    for sample in range(4):
        wide = [item[sample].expand(count, *item.shape[1:]) for item in (logits, temperature, top)]
        tokens = draw(wide[0], noise, wide[1][:, None], wide[2][:, None], sampling)
        shares = torch.bincount(tokens, minlength=vocabulary).double() / count
        torch.testing.assert_close(shares, found[sample], rtol=0, atol=1.01 / count)
        large = found[sample] > 2 / count
        assert (shares[large] > 0).all()
        assert (shares[found[sample] == 0] == 0).all()


def test_of_equal_logits_the_first_are_kept():
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    one = torch.tensor(1.0)
    assert (distribution(logits, one, top_k=2) > 0).tolist() == [[False, True, True, False, False]]
    kept = distribution(logits, one, torch.tensor(0.5)) > 0
    assert kept.tolist() == [[False, True, True, False, False]]


def test_plain_sampling_is_the_softmax():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 7)
    temperature = torch.tensor([0.5, 2.0])
    expected = torch.softmax(logits.double() / temperature[:, None, None].double(), -1)
    assert distribution(logits, temperature).equal(expected)
    wide = distribution(logits, temperature, torch.tensor([0.5, 0.9]), 4)
    for row in range(3):
        alone = distribution(logits[:, row], temperature, torch.tensor([0.5, 0.9]), 4)
        assert wide[:, row].equal(alone)


def test_a_draw_is_never_a_token_without_probability():
    weights = torch.tensor([[0, 0.25, 0, 0.75, 0]], dtype=torch.float64)
    almost_one = 1 - 2**-53
    for uniform, token in ((0.0, 1), (0.25 - 1e-12, 1), (0.25, 3), (almost_one, 3)):
        assert pick(weights, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]
    # Thirds do not add up to one in floating point.
    thirds = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    assert pick(thirds * 0.3, torch.tensor([almost_one], dtype=torch.float64)).tolist() == [2]


def _grid(count, draws_):
    points = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.cartesian_prod(*[points] * draws_).reshape(-1, draws_)


def test_independent_draws():
    probabilities = torch.tensor([[0.5, 0.0, 0.25, 0.25]], dtype=torch.float64)
    uniforms = _grid(4, 2)
    tokens = draws(probabilities.expand(16, 4), uniforms)
    for pair in itertools.product(range(4), repeat=2):
        share = (tokens == torch.tensor(pair)).all(1).double().mean()
        assert share == probabilities[0, pair[0]] * probabilities[0, pair[1]]


def test_draws_without_replacement():
    probabilities = torch.tensor([[0.5, 0.0, 0.25, 0.25]], dtype=torch.float64)
    # Twelve parts are exact for the first draw and for what it leaves.
    tokens = draws_without_replacement(probabilities.expand(144, 4), _grid(12, 2))
    for first, second in itertools.product(range(4), repeat=2):
        left = probabilities[0].clone()
        left[first] = 0
        expected = probabilities[0, first] * left[second] / left.sum()
        share = (tokens == torch.tensor([first, second])).all(1).double().mean()
        assert share == pytest.approx(float(expected), abs=1e-12)
    certain = torch.tensor([[0, 1.0]], dtype=torch.float64)
    assert draws_without_replacement(certain, _grid(1, 2)).tolist() == [[1, 1]]

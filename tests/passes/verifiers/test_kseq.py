"""rho, the residual, and the edges of k-SEQ; the distribution itself is in test_lossless.py."""

import itertools

import numpy as np
import pytest
import torch

from optimize.ir.draft_tree import DraftTree
from optimize.passes.verifiers.kseq import Exact, KSeq, residual, smallest_rho
from tests.passes.verifiers import enumerated
from tests.passes.verifiers.enumerated import Outcome, all_drafts, constant

P, Q = [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]


def _rho(p, q, count):
    p, q = (torch.tensor(np.array([item], dtype=float)) for item in (p, q))
    return smallest_rho(p, q, torch.tensor([count])).item()


def _beta(p, q, rho):
    return np.minimum(p, np.divide(q, rho)).sum()


def _acceptance(p, q, rho, count):
    return 1 - (1 - _beta(p, q, rho)) ** count


@pytest.mark.parametrize(("count", "rho"), [(1, 1.0), (2, 1.5), (3, 1.939499683)])
def test_published_rho(count, rho):
    assert _rho(P, Q, count) == pytest.approx(rho, abs=5e-10 if count == 3 else 1e-13)


def test_beta_and_the_residual_of_two_drafts():
    assert _beta(P, Q, 1.5) == pytest.approx(0.5)
    p, q = (torch.tensor([item], dtype=torch.float64) for item in (P, Q))
    left = residual(p, q, torch.tensor([1.5], dtype=torch.float64))
    np.testing.assert_allclose(left, [[0, 0, 0, 1]], atol=1e-15)


def test_the_number_of_drafts_is_valid_but_accepts_less():
    p, q = [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]
    assert _rho(p, q, 4) == pytest.approx(2.0300358, abs=5e-8)
    assert _acceptance(p, q, _rho(p, q, 4), 4) == pytest.approx(0.9060, abs=5e-5)
    assert _acceptance(p, q, 4, 4) == pytest.approx(0.6836, abs=5e-5)


def _optimum(p, q, count):
    """The best acceptance of any scheme: 1 + min over sets A of q(A) - p(A)^k."""
    sets = itertools.product((0, 1), repeat=len(p))
    return 1 + min(np.dot(chosen, q) - np.dot(chosen, p) ** count for chosen in sets)


def test_the_optimum_of_the_published_example():
    assert _optimum(P, Q, 1) == pytest.approx(0.6)
    assert _optimum(P, Q, 2) == pytest.approx(0.79)
    assert _optimum(P, Q, 3) == pytest.approx(0.871)


@pytest.mark.parametrize("vocabulary", [4, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_random_pairs_are_exact_and_near_the_optimum(vocabulary, count):
    """The output law in closed form, from the functions that the verifier uses."""
    random = np.random.default_rng(vocabulary * 10 + count)
    for p, q in random.dirichlet(np.ones(vocabulary), (40, 2)):
        rho = _rho(p, q, count)
        assert rho == pytest.approx(enumerated.rho_of(p, q, count), abs=1e-12)
        acceptance, beta = _acceptance(p, q, rho, count), _beta(p, q, rho)
        assert acceptance == pytest.approx(np.minimum(rho * p, q).sum(), abs=1e-12)
        tensors = (torch.from_numpy(item)[None] for item in (p, q))
        left = residual(*tensors, torch.tensor([rho], dtype=torch.float64)).numpy()[0]
        output = np.minimum(p, q / rho) * acceptance / beta + (1 - acceptance) * left
        assert np.abs(output - q).max() < 1e-12
        # Larger ones are valid too, as they leave no token with too much; smaller ones are not.
        larger = 1.3 * rho
        share = _acceptance(p, q, larger, count) / _beta(p, q, larger)
        assert (np.minimum(p, q / larger) * share <= q + 1e-12).all()
        if count > 1 and rho > 1.05:
            smaller = 0.95 * rho
            share = _acceptance(p, q, smaller, count) / _beta(p, q, smaller)
            assert (np.minimum(p, q / smaller) * share > q + 1e-12).any()
        bound = 1 - (1 - 1 / count) ** count
        assert acceptance >= bound * _optimum(p, q, count) - 1e-12


def test_drafts_from_the_target_leave_rho_at_one():
    q = [0.5, 0.25, 0.125, 0.125]
    for count in (1, 2, 3, 8):
        rho = _rho(q, q, count)
        assert _acceptance(q, q, rho, count) == pytest.approx(1, abs=1e-14)
    assert _rho(q, q, 2) == pytest.approx(1, abs=1e-6)


def test_distributions_without_a_common_token():
    p, q = (torch.tensor([item], dtype=torch.float64) for item in ([1.0, 0, 0], [0, 0.5, 0.5]))
    rho = smallest_rho(p, q, torch.tensor([3]))
    assert torch.isfinite(rho).all()
    assert residual(p, q, rho).tolist() == [[0, 0.5, 0.5]]


def test_a_residual_of_nothing_is_the_target():
    q = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    assert residual(q, q, torch.ones(1, dtype=torch.float64)).tolist() == q.tolist()


def test_a_target_of_one_token_accepts_any_draft_of_it():
    """0.657 = 1 - 0.7^3, and the residual is that token."""
    p, q = constant([0.3, 0.5, 0.2]), constant([1, 0, 0])
    tree = DraftTree.independent(3, 1)
    outcome = Outcome(KSeq(), tree, p, q, all_drafts(tree, p), enumerated.independent)
    assert outcome.accepted == pytest.approx(0.657, abs=1e-12)
    assert {emitted[0] for emitted in outcome.emitted} == {0}


def _random_round(tree, batch, vocabulary=6):
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape):
        return torch.rand(batch, *shape, generator=generator, dtype=torch.float64)

    p, q = (torch.softmax(3 * numbers(tree.size, vocabulary), -1) for _ in range(2))
    tokens = (numbers(tree.size) * vocabulary).long()
    samples = torch.arange(batch)
    return tokens, lambda row: q[samples, row], lambda row: p[samples, row], numbers(tree.size)


def test_one_draft_is_the_classical_rule_bit_for_bit():
    tree = DraftTree.chain(4)
    given = _random_round(tree, 500)
    one, several = Exact().verify(tree, *given), KSeq().verify(tree, *given)
    for left, right in zip(one, several, strict=True):
        assert left.equal(right)
    assert set(one.accepted.tolist()) == {0, 1, 2, 3, 4}


def test_samples_of_a_batch_do_not_meet():
    tree = DraftTree.independent(3, 3)
    tokens, target, draft, uniforms = _random_round(tree, 40)
    together = KSeq().verify(tree, tokens, target, draft, uniforms)
    assert len(set(together.accepted.tolist())) > 2
    for sample in range(40):
        alone = KSeq().verify(
            tree,
            tokens[sample : sample + 1],
            lambda row, sample=sample: target(row.expand(40))[sample : sample + 1],
            lambda row, sample=sample: draft(row.expand(40))[sample : sample + 1],
            uniforms[sample : sample + 1],
        )
        assert [item[0].tolist() for item in alone] == [item[sample].tolist() for item in together]


def test_trees_that_branch_later_are_refused():
    tree = DraftTree((0, 1, 1))
    assert "branches below its root" in KSeq().accepts(tree)
    assert KSeq().accepts(DraftTree.independent(3, 4)) is None
    assert "expected one chain" in Exact().accepts(DraftTree.independent(2, 1))
    assert Exact().accepts(DraftTree.chain(5)) is None

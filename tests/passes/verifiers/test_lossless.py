"""Lossless verifiers give the target's distribution: all drafts and all uniforms are enumerated."""

import functools

import pytest

from optimize.ir.draft_tree import DraftTree
from optimize.passes.verifiers import kseq
from optimize.passes.verifiers.block import Block
from optimize.passes.verifiers.kseq import Exact, KSeq
from optimize.passes.verifiers.recursive import Recursive
from tests.passes.verifiers import enumerated
from tests.passes.verifiers.enumerated import Outcome, all_drafts, constant, tables

BRANCHING = DraftTree.ranked([(0,), (1,), (0, 0), (0, 1), (0, 0, 0)])
WITHOUT = functools.partial(enumerated.recursive, without_replacement=True)
CASES = {
    "exact": (Exact(), DraftTree.chain(3), enumerated.independent, False),
    "block": (Block(), DraftTree.chain(3), enumerated.block, False),
    "kseq": (KSeq(), DraftTree.independent(3, 2), enumerated.independent, False),
    "kseq of one": (KSeq(), DraftTree.chain(3), enumerated.independent, False),
    "recursive": (Recursive(), BRANCHING, enumerated.recursive, False),
    "recursive drafts": (Recursive(), DraftTree.independent(2, 2), enumerated.recursive, False),
    "without": (Recursive(without_replacement=True), BRANCHING, WITHOUT, True),
}


def outcome_of(name, p, q):
    verifier, tree, branches, without_replacement = CASES[name]
    return Outcome(verifier, tree, p, q, all_drafts(tree, p, without_replacement), branches)


@pytest.mark.parametrize("name", CASES)
def test_the_text_has_the_distribution_of_the_target(name):
    outcome = outcome_of(name, *tables(3, seed=1))
    assert outcome.weights.sum() == pytest.approx(1, abs=1e-12)
    assert outcome.emitted == outcome.expected
    assert outcome.error() < 1e-12
    outcome.check_paths()


@pytest.mark.parametrize("name", CASES)
def test_tokens_that_draft_or_target_exclude(name):
    p, q = tables(3, seed=2)
    p[0], q[0] = [0.5, 0.5, 0], [0, 0.4, 0.6]
    q[1] = [0, 0, 1]
    outcome = outcome_of(name, p, q)
    assert outcome.emitted == outcome.expected
    assert outcome.error() < 1e-12


@pytest.mark.parametrize("name", [name for name in CASES if name != "without"])
def test_drafts_from_the_target_are_all_accepted(name):
    q, _ = tables(3, seed=3)
    outcome = outcome_of(name, q, q)
    full = outcome.verdict.accepted.numpy() == outcome.tree.depth
    # In a branching tree the first child is accepted, and it is the one that goes on.
    assert full[outcome.weights > 1e-15].all()
    assert outcome.error() < 1e-12


@pytest.mark.parametrize("name", ["exact", "block", "kseq", "recursive"])
def test_a_draft_that_shares_no_token_with_the_target(name):
    outcome = outcome_of(name, constant([0.5, 0.5, 0]), constant([0, 0, 1]))
    assert outcome.accepted == 0
    assert set(outcome.verdict.token.tolist()) == {2}


def test_several_drafts_and_blocks_accept_more_than_one_draft_token_by_token():
    p, q = tables(3, seed=1)
    chain, three = DraftTree.chain(2), DraftTree.independent(3, 2)
    one = Outcome(Exact(), chain, p, q, all_drafts(chain, p), enumerated.independent)
    block = Outcome(Block(), chain, p, q, all_drafts(chain, p), enumerated.block)
    several = Outcome(KSeq(), three, p, q, all_drafts(three, p), enumerated.independent)
    assert one.accepted < block.accepted < several.accepted


def test_block_verification_of_two_tokens_accepts_eleven_ninths():
    p, q = constant([2 / 3, 1 / 3]), constant([1 / 3, 2 / 3])
    tree = DraftTree.chain(2)
    token_level = Outcome(Exact(), tree, p, q, all_drafts(tree, p), enumerated.independent)
    block = Outcome(Block(), tree, p, q, all_drafts(tree, p), enumerated.block)
    assert token_level.accepted == pytest.approx(10 / 9, abs=1e-12)
    assert block.accepted == pytest.approx(11 / 9, abs=1e-12)
    assert block.error() < 1e-12


P, Q = constant([0.4, 0.3, 0.2, 0.1]), constant([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("count", "by_kseq", "by_recursion"), [(1, 0.6, 0.6), (2, 0.75, 0.72), (3, 0.793949968, 0.768)]
)
def test_published_acceptance_of_one_token(count, by_kseq, by_recursion):
    tree = DraftTree.independent(count, 1)
    drafts = list(all_drafts(tree, P))
    outcome = Outcome(KSeq(), tree, P, Q, drafts, enumerated.independent)
    assert outcome.accepted == pytest.approx(by_kseq, abs=5e-10)
    assert outcome.error() < 1e-12
    outcome = Outcome(Recursive(), tree, P, Q, drafts, enumerated.recursive)
    assert outcome.accepted == pytest.approx(by_recursion, abs=1e-12)
    assert outcome.error() < 1e-12


def test_the_likeliest_tokens_are_no_independent_drafts():
    """The enumeration notices drafts that were not drawn: a total variation of 0.30."""
    tree = DraftTree.independent(2, 1)
    outcome = Outcome(KSeq(), tree, P, Q, [((0, 0, 1), 1.0)], enumerated.independent)
    assert outcome.total_variation() == pytest.approx(0.30, abs=1e-12)


def test_a_residual_without_rho_is_noticed(monkeypatch):
    right = kseq.residual
    monkeypatch.setattr(kseq, "residual", lambda p, q, rho: right(p, q, (rho > 0).double()))
    tree = DraftTree.independent(2, 1)

    def twentieths(tree, probabilities):
        return [(None, 0.05, (part + 0.5) / 20) for part in range(20)]

    branches = functools.partial(enumerated.independent, last=twentieths)
    outcome = Outcome(KSeq(), tree, P, Q, all_drafts(tree, P), branches)
    assert outcome.total_variation() == pytest.approx(0.0625, abs=1e-12)


def test_a_rho_below_the_smallest_is_noticed(monkeypatch):
    right = kseq.smallest_rho
    monkeypatch.setattr(kseq, "smallest_rho", lambda *given: 0.9 * right(*given))
    tree = DraftTree.independent(3, 1)
    branches = functools.partial(
        enumerated.independent, rho=lambda *given: 0.9 * enumerated.rho_of(*given)
    )
    outcome = Outcome(KSeq(), tree, P, Q, all_drafts(tree, P), branches)
    assert outcome.emitted == outcome.expected
    assert outcome.total_variation() == pytest.approx(0.041, abs=5e-4)

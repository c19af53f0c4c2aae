"""The judge adds tokens to those that the target accepts, and takes none away."""

import math

import pytest
import torch

from optimize.ir.draft_tree import DraftTree
from optimize.passes.verifiers.catalog import VERIFIERS, verifier
from optimize.passes.verifiers.greedy import Greedy
from optimize.passes.verifiers.judge import Judge
from optimize.passes.verifiers.kseq import Exact

LENGTH, BATCH, VOCABULARY = 6, 300, 5
TREE = DraftTree.chain(LENGTH)


def _round():
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape):
        return torch.rand(BATCH, *shape, generator=generator, dtype=torch.float64)

    p, q = (torch.softmax(3 * numbers(TREE.size, VOCABULARY), -1) for _ in range(2))
    samples = torch.arange(BATCH)
    return {
        "tokens": (numbers(TREE.size) * VOCABULARY).long(),
        "target": lambda row: q[samples, row],
        "draft": lambda row: p[samples, row],
        "uniforms": numbers(TREE.size),
        "scores": 6 * numbers(TREE.size) - 3,
    }


@pytest.mark.parametrize(("sampled", "plain"), [(True, Exact()), (False, Greedy())])
def test_above_one_it_never_accepts(sampled, plain):
    given = _round()
    found = Judge(threshold=1.5, sampled=sampled).verify(TREE, **given)
    for left, right in zip(found, plain.verify(TREE, **given), strict=True):
        assert left.equal(right)


@pytest.mark.parametrize("sampled", [True, False])
def test_at_zero_it_accepts_the_whole_draft(sampled):
    given = _round()
    found = Judge(threshold=0, sampled=sampled).verify(TREE, **given)
    assert (found.accepted == LENGTH).all()
    # The token behind the draft comes from the target.
    if not sampled:
        end = torch.full((BATCH,), LENGTH)
        assert found.token.equal(given["target"](end).argmax(-1))


@pytest.mark.parametrize(("sampled", "plain"), [(True, Exact()), (False, Greedy())])
def test_fewer_tokens_are_accepted_as_the_threshold_rises(sampled, plain):
    given = _round()
    lengths = [
        Judge(threshold=threshold, sampled=sampled).verify(TREE, **given).accepted
        for threshold in (0, 0.2, 0.4, 0.5, 0.7, 0.9, 1.5)
    ]
    for longer, shorter in zip(lengths, lengths[1:], strict=False):
        assert (longer >= shorter).all()
        assert (longer > shorter).any()
    assert (lengths[-1] >= plain.verify(TREE, **given).accepted).all()


@pytest.mark.parametrize("sampled", [True, False])
def test_the_walk_ends_where_target_and_judge_both_reject(sampled):
    given = _round()
    found = Judge(sampled=sampled).verify(TREE, **given)
    tokens, target, draft = (given[name] for name in ("tokens", "target", "draft"))
    for sample in range(BATCH):
        end = int(found.accepted[sample])
        for row in range(1, min(end + 2, LENGTH + 1)):
            token = tokens[sample, row]
            before = torch.full((BATCH,), row - 1)
            q, p = target(before)[sample], draft(before)[sample]
            agrees = (
                given["uniforms"][sample, row - 1] < q[token] / p[token]
                if sampled
                else q.argmax() == token
            )
            right = torch.sigmoid(given["scores"][sample, row]) >= 0.5
            assert bool(agrees | right) == (row <= end)
        if end < LENGTH and sampled:
            before = torch.full((BATCH,), end)
            token = found.token[sample]
            assert target(before)[sample, token] > draft(before)[sample, token]


def test_scores_are_compared_as_logits():
    scores = torch.tensor([[math.log(4) - 1e-6, math.log(4) + 1e-6]], dtype=torch.float64)
    tokens = torch.tensor([[1, 1]])
    assert Judge(threshold=0.8).finds_right(tokens, scores).tolist() == [[False, True]]
    assert Judge(threshold=1).finds_right(tokens, scores).tolist() == [[False, False]]


@pytest.mark.parametrize("threshold", [0, 0.5])
def test_a_stop_token_needs_the_target(threshold):
    judge = Judge(threshold=threshold, stop_tokens=(3, 4), sampled=False)
    tokens = torch.tensor([[0, 2, 3, 1], [0, 2, 4, 1], [0, 2, 1, 1]])
    logits = torch.eye(VOCABULARY)[torch.tensor([[0, 3, 0, 0]] * 3)]
    verdict = judge.verify(
        DraftTree.chain(3),
        tokens,
        lambda row: logits[torch.arange(3), row],
        scores=torch.full((3, 4), 9.0),
    )
    assert verdict.accepted.tolist() == [3, 1, 3]
    assert verdict.token.tolist() == [0, 3, 0]


def test_only_the_judge_is_lossy_and_needs_scores():
    made = [verifier(name) for name in VERIFIERS]
    assert [item.name for item in made if item.lossy] == ["judge"]
    assert [item.name for item in made if item.needs_scores] == ["judge"]
    assert [item.name for item in made if not item.needs_draft] == ["greedy"]
    assert [item.uniform_count(TREE) for item in made if item.name == "greedy"] == [0]
    assert all(item.accepts(TREE) is None for item in made)


def test_unknown_names_and_options_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="known verifiers: exact, block.*Did you mean kseq"):
        verifier("kseqs")
    with pytest.raises(ValueError, match="found option 'delta', expected threshold, stop_tokens"):
        verifier("judge", delta=0.5)
    with pytest.raises(ValueError, match="exact: found option 'count', expected none"):
        verifier("exact", count=3)
    with pytest.raises(ValueError, match="threshold nan"):
        verifier("judge", threshold=math.nan)
    assert verifier("recursive", without_replacement=True).siblings == "without_replacement"

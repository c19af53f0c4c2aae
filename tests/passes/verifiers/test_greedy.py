"""Greedy verification emits what the target alone would, along the longest path that agrees."""

import pytest
import torch

from optimize.ir.draft_tree import CHIMERA_TREE, DraftTree
from optimize.passes.verifiers.greedy import Greedy
from optimize.passes.verifiers.kseq import KSeq

VOCABULARY = 4


def _model(seed):
    """Logits [V, V] of the token after each."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(VOCABULARY, VOCABULARY, generator=generator)


def _rows(tokens, table):
    return lambda row: table[tokens.gather(1, row[:, None])[:, 0]]


def _walk(tree, tokens, choices):
    """The longest path of target choices, and the choice behind it."""
    best = (0, 0)
    for row in range(1, tree.size):
        path = [row]
        while path[0]:
            path.insert(0, tree.parents[path[0] - 1])
        steps = zip(path, path[1:], strict=False)
        if all(choices[tokens[before]] == tokens[after] for before, after in steps):
            best = max(best, (len(path) - 1, -row))
    return best[0], choices[tokens[-best[1]]]


@pytest.mark.parametrize(
    "tree",
    [CHIMERA_TREE, DraftTree.chain(4), DraftTree.independent(4, 3), DraftTree((0, 0, 1, 2, 4))],
    ids=["chimera", "chain", "drafts", "uneven"],
)
def test_the_longest_path_of_choices_is_found(tree):
    torch.manual_seed(0)
    table = _model(0)
    tokens = torch.randint(VOCABULARY, (4000, tree.size))
    verdict = Greedy().verify(tree, tokens, _rows(tokens, table))
    expected = [_walk(tree, row, table.argmax(-1).tolist()) for row in tokens.tolist()]
    assert list(zip(verdict.accepted.tolist(), verdict.token.tolist(), strict=True)) == expected
    assert len({accepted for accepted, _ in expected}) == tree.depth + 1
    for path, end in zip(verdict.path.tolist(), verdict.accepted.tolist(), strict=True):
        assert [tree.parents[row - 1] for row in path[:end]] == [0, *path[:end]][:end]
        assert all(0 <= row < tree.size for row in path)


def test_a_perfect_draft_of_chimera_gives_six_tokens():
    table = _model(1)
    tokens = torch.full((1, CHIMERA_TREE.size), -1)
    row, token = 0, 2
    tokens[0, 0] = token
    for _ in range(5):
        row, token = CHIMERA_TREE.children[row][0], int(table[token].argmax())
        tokens[0, row] = token
    verdict = Greedy().verify(CHIMERA_TREE, tokens, _rows(tokens.clamp(min=0), table))
    assert verdict.accepted.tolist() == [5]
    assert verdict.token.tolist() == [int(table[token].argmax())]


def test_rounds_in_a_row_are_plain_greedy_decoding():
    tree, table = DraftTree.independent(3, 3), _model(2)
    torch.manual_seed(1)
    text = [0]
    while len(text) < 60:
        tokens = torch.randint(VOCABULARY, (1, tree.size))
        tokens[0, 0] = text[-1]
        path, accepted, token = Greedy().verify(tree, tokens, _rows(tokens, table))
        text += tokens[0, path[0, : accepted[0]]].tolist() + token.tolist()
    for before, after in zip(text, text[1:], strict=False):
        assert after == table[before].argmax()


def test_sampling_from_a_target_of_one_token_is_greedy():
    tree, table = DraftTree.independent(3, 3), _model(3)
    certain = torch.nn.functional.one_hot(table.argmax(-1), VOCABULARY).double()
    torch.manual_seed(2)
    tokens = torch.randint(VOCABULARY, (300, tree.size))
    draft = torch.full((VOCABULARY, VOCABULARY), 1 / VOCABULARY, dtype=torch.float64)
    uniforms = torch.rand(300, tree.size, dtype=torch.float64)
    greedy = Greedy().verify(tree, tokens, _rows(tokens, table))
    sampled = KSeq().verify(tree, tokens, _rows(tokens, certain), _rows(tokens, draft), uniforms)
    assert sampled.accepted.equal(greedy.accepted)
    assert sampled.token.equal(greedy.token)


def test_of_equal_logits_the_first_counts():
    tokens = torch.tensor([[0, 1], [0, 2]])
    logits = torch.tensor([[0.0, 1.0, 1.0]]).expand(2, 3)
    verdict = Greedy().verify(DraftTree.chain(1), tokens, lambda row: logits)
    assert verdict.accepted.tolist() == [1, 0]
    assert verdict.token.tolist() == [1, 1]

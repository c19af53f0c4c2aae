"""Shapes of drafts: rows, levels, who sees whom, and the trees that are refused."""

import pytest

from optimize.ir.draft_tree import CHIMERA_TREE, DraftTree


def test_rows_of_a_small_tree():
    tree = DraftTree((0, 0, 1, 1, 2))
    assert (tree.size, tree.depth) == (6, 2)
    assert tree.depths == (0, 1, 1, 2, 2, 2)
    assert tree.children == ((1, 2), (3, 4), (5,), (), (), ())
    assert tree.levels == ((0,), (1, 2), (3, 4, 5))
    assert tree.sees().int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 0, 1, 0, 0, 1],
    ]


def test_a_chain_sees_what_is_before_it():
    tree = DraftTree.chain(3)
    assert tree.parents == (0, 1, 2)
    assert tree.drafts == 1
    assert tree.sees().equal(tree.sees().tril())
    assert tree.sees().sum() == 10


def test_independent_drafts_stand_level_by_level():
    tree = DraftTree.independent(3, 2)
    assert tree.parents == (0, 0, 0, 1, 2, 3)
    assert tree.drafts == 3
    assert DraftTree.independent(3, 1).drafts == 3
    assert DraftTree((0, 0, 1, 1)).drafts is None


def test_ranked_rows_are_ordered_by_level_then_rank():
    tree = DraftTree.ranked([(0, 1), (1,), (0,), (1, 0), (0, 0)])
    assert tree.parents == (0, 0, 1, 1, 2)


def test_chimera_counts():
    assert [len(level) for level in CHIMERA_TREE.levels] == [1, 4, 8, 8, 3, 2]
    assert (CHIMERA_TREE.size, CHIMERA_TREE.depth) == (26, 5)
    ones = CHIMERA_TREE.sees().sum(1).tolist()
    assert ones == [depth + 1 for depth in CHIMERA_TREE.depths]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DraftTree(()), "no drafted token"),
        (lambda: DraftTree((0, 2)), "parent 2 of row 2, expected an earlier row, 0 to 1"),
        (lambda: DraftTree((-1,)), "parent -1 of row 1"),
        (lambda: DraftTree.chain(0), "1 drafts of 0 tokens"),
        (lambda: DraftTree.ranked([(0,), (0,)]), "twice"),
        (lambda: DraftTree.ranked([(0, 0)]), r"path \(0, 0\) without \(0,\)"),
        (lambda: DraftTree.ranked([(0,), (2,)]), r"path \(2,\) without \(1,\)"),
        (lambda: DraftTree.ranked([(0,), (-1,)]), r"path \(-1,\), expected"),
        (lambda: DraftTree.ranked([()]), r"path \(\), expected"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""The shape of what is drafted in one round: a tree of tokens behind the last certain one.

    row    0      1   2      3    4    5          DraftTree((0, 0, 1, 1, 2))
           root → a → aa, ab      b → ba          a and b are rows 1 and 2, aa, ab and ba 3, 4 and 5

A row is a query of the target's verification call. Which tokens stand in it is decided anew in
every round; the shape is fixed, so it is part of a graph and not of its inputs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class DraftTree:
    """A tree of drafted tokens; row 0 is the root, the last token that is certain.

    Args:
        parents: of row 1, row 2 and so on; each an earlier row.
    Raises:
        ValueError: there is no drafted token, or a parent is no earlier row.
    """

    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.parents:
            raise ValueError("DraftTree: found no drafted token, expected at least one parent")
        for row, parent in enumerate(self.parents, 1):
            if not 0 <= parent < row:
                raise ValueError(
                    f"DraftTree: found parent {parent} of row {row}, expected an earlier row, "
                    f"0 to {row - 1}"
                )

    @classmethod
    def chain(cls, length: int) -> "DraftTree":
        """One draft of `length` tokens; row i is its i-th."""
        return cls.independent(1, length)

    @classmethod
    def independent(cls, count: int, length: int) -> "DraftTree":
        """`count` drafts of `length` tokens side by side.

        Token i of draft k, both from 0, is row 1 + i * count + k.

        Raises:
            ValueError: a number below one.
        """
        if count < 1 or length < 1:
            raise ValueError(
                f"DraftTree: found {count} drafts of {length} tokens, expected at least one of each"
            )
        behind = tuple(range(1, 1 + count * (length - 1)))
        return cls((0,) * count + behind)

    @classmethod
    def ranked(cls, paths: Iterable[tuple[int, ...]]) -> "DraftTree":
        """A tree of ranks: (0, 2) is the third likeliest token behind the likeliest one.

        Rows stand level by level and in order of their paths within a level.

        Raises:
            ValueError: a path is there twice, or without the one it continues or the one of the
                next better rank.
        """
        given = list(paths)
        known = set(given)
        if len(given) != len(known):
            raise ValueError("DraftTree: found a path of ranks twice, expected each once")
        for path in given:
            better = () if not path else (*path[:-1], path[-1] - 1)
            if not path or min(path) < 0:
                raise ValueError(
                    f"DraftTree: found path {path}, expected at least one rank, from 0 on"
                )
            for needed in (path[:-1], better):
                if needed and min(needed) >= 0 and needed not in known:
                    raise ValueError(
                        f"DraftTree: found path {path} without {needed}; add it or remove {path}"
                    )
        order = sorted(given, key=lambda path: (len(path), path))
        rows = {(): 0} | {path: row for row, path in enumerate(order, 1)}
        return cls(tuple(rows[path[:-1]] for path in order))

    @property
    def size(self) -> int:
        """S, the rows with the root."""
        return len(self.parents) + 1

    @property
    def depth(self) -> int:
        """Drafted tokens on the longest path."""
        return max(self.depths)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Of each row, the root's being 0."""
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Of each row, in order."""
        children: list[list[int]] = [[] for _ in range(self.size)]
        for row, parent in enumerate(self.parents, 1):
            children[parent].append(row)
        return tuple(map(tuple, children))

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """The rows of each depth, the root's first."""
        return tuple(
            tuple(row for row, depth in enumerate(self.depths) if depth == level)
            for level in range(self.depth + 1)
        )

    @property
    def drafts(self) -> int | None:
        """How many drafts stand side by side in a tree made by `independent`, else None."""
        count = len(self.children[0])
        length, rest = divmod(self.size - 1, count)
        return count if not rest and self == DraftTree.independent(count, length) else None

    def sees(self) -> torch.Tensor:
        """[S, S] bool: whether a row (first axis) sees another: itself, its ancestors, the root."""
        seen = torch.eye(self.size, dtype=torch.bool)
        for row, parent in enumerate(self.parents, 1):
            seen[row] |= seen[parent]
        return seen


def _paths(text: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, path)) for path in text.split()]


CHIMERA_TREE = DraftTree.ranked(
    _paths(
        "0 1 2 3 00 01 02 10 11 20 21 30 000 001 002 010 011 020 021 100 0000 0001 0002 00000 00001"
    )
)
"""The fixed tree of Chimera: 25 tokens, 5 deep. Source: Zeng et al. (2024), official code."""

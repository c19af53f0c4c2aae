"""Which frames see which: the geometry that all forms of `tile_attention` share, in integers.

The rows are [prefix text | F frames of P tokens each | suffix text]. Text and reference frames are
global: they see every row and every row sees them. Any other frame sees the global rows and itself.

    F = 5, references (0, 3):    1 1 1 1 1
                                 1 1 . 1 .
                                 1 . 1 1 .
                                 1 1 1 1 1
                                 1 . . 1 1
"""

from collections.abc import Sequence
from dataclasses import dataclass

Range = tuple[int, int]
"""Rows from the first number up to, not including, the second."""


@dataclass(frozen=True)
class TilePattern:
    """The `k : F-k` attention tiles of one video, with text before and after it.

    Attributes:
        frames: F, at least 1.
        tokens_per_frame: P, at least 1.
        references: the k global frames, ascending, at least one, each in [0, F).
        prefix: text rows before the video.
        suffix: text rows after it.
    Raises:
        ValueError: a number is out of range, or the references are not ascending.
    """

    frames: int
    tokens_per_frame: int
    references: tuple[int, ...]
    prefix: int = 0
    suffix: int = 0

    def __post_init__(self) -> None:
        if self.frames < 1 or self.tokens_per_frame < 1 or self.prefix < 0 or self.suffix < 0:
            raise ValueError(
                f"tile_attention: found frames {self.frames}, tokens_per_frame "
                f"{self.tokens_per_frame}, prefix {self.prefix}, suffix {self.suffix}, expected "
                "at least 1 frame, 1 token per frame and no negative number of text rows"
            )
        ascending = all(a < b for a, b in zip(self.references, self.references[1:], strict=False))
        inside = all(0 <= frame < self.frames for frame in self.references)
        if not self.references or not ascending or not inside:
            raise ValueError(
                f"tile_attention: found references {list(self.references)}, expected at least one "
                f"frame of [0, {self.frames}), ascending and without repeats; "
                "spread_references(frames, count) gives the usual ones"
            )

    @property
    def length(self) -> int:
        """S, the number of rows."""
        return self.prefix + self.frames * self.tokens_per_frame + self.suffix

    @property
    def is_dense(self) -> bool:
        """Whether every row sees every row; so it is with one frame that is no reference."""
        return len(self.references) >= self.frames - 1

    @property
    def others(self) -> tuple[int, ...]:
        """The frames that are no reference."""
        return tuple(frame for frame in range(self.frames) if frame not in self.references)

    def frame_range(self, frame: int) -> Range:
        """The rows of a frame."""
        start = self.prefix + frame * self.tokens_per_frame
        return start, start + self.tokens_per_frame

    @property
    def global_ranges(self) -> tuple[Range, ...]:
        """The rows of text and reference frames, ascending, neighbours joined."""
        end = self.length - self.suffix
        pieces = [(0, self.prefix), *map(self.frame_range, self.references), (end, self.length)]
        ranges: list[Range] = []
        for start, stop in pieces:
            if start == stop:
                continue
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], stop)
            else:
                ranges.append((start, stop))
        return tuple(ranges)

    @property
    def other_ranges(self) -> tuple[Range, ...]:
        """The rows of the frames that are no reference, ascending, neighbours joined."""
        edges = [row for piece in self.global_ranges for row in piece]
        pairs = zip([0, *edges[1::2]], [*edges[::2], self.length], strict=True)
        return tuple((start, stop) for start, stop in pairs if start < stop)

    @property
    def global_length(self) -> int:
        """How many rows are global."""
        return self.prefix + len(self.references) * self.tokens_per_frame + self.suffix

    @property
    def kept_pairs(self) -> int:
        """How many (query row, key row) pairs are computed."""
        own = len(self.others) * self.tokens_per_frame
        return self.global_length * self.length + own * (self.global_length + self.tokens_per_frame)

    @property
    def density(self) -> float:
        """The kept share of all pairs, in (0, 1]."""
        return self.kept_pairs / self.length**2

    def kept_blocks(self, block: int) -> int:
        """How many blocks of `block` x `block` pairs hold a kept pair.

        A block that reaches into two frames is computed whole, so this is what a kernel with such
        blocks pays.
        """
        spans = [
            self._frames_between(start, min(start + block, self.length))
            for start in range(0, self.length, block)
        ]
        local = [span for span in spans if span is not None]
        apart = sum(
            last < other_first or other_last < first
            for first, last in local
            for other_first, other_last in local
        )
        return len(spans) ** 2 - apart

    def block_sparsity(self, block: int) -> float:
        """The share of blocks that need not be computed, in [0, 1)."""
        return 1 - self.kept_blocks(block) / (-(-self.length // block)) ** 2

    def _frames_between(self, start: int, stop: int) -> Range | None:
        """The first and last frame of some rows, or None when one of the rows is global."""
        if any(start < end and begin < stop for begin, end in self.global_ranges):
            return None
        first, last = ((row - self.prefix) // self.tokens_per_frame for row in (start, stop - 1))
        return first, last


def spread_references(frames: int, count: int) -> tuple[int, ...]:
    """Spreads the references evenly: frame ceil(i * frames / count), for i below `count`.

    Args:
        frames: F, at least 1.
        count: k, in [1, F].
    Raises:
        ValueError: `count` is outside [1, F].
    Source: Ding et al. (2025), Efficient-vDiT; the published block sparsities fit this placement.
    """
    if not 1 <= count <= frames:
        raise ValueError(f"spread_references: found count {count}, expected one of [1, {frames}]")
    return tuple(-(-index * frames // count) for index in range(count))


def kept_tiles(frames: int, count: int) -> int:
    """How many of the F * F frame tiles are kept with `count` references: F(2k+1) - k^2 - k."""
    return frames * (2 * count + 1) - count**2 - count


def tile_density(frames: int, count: int) -> float:
    """The kept share of frame tiles: 1 - (F-k)(F-k-1) / F^2."""
    return 1 - (frames - count) * (frames - count - 1) / frames**2


def pattern_of(
    frames: int, tokens_per_frame: int, references: Sequence[int], prefix: int, suffix: int
) -> TilePattern:
    """The pattern of an op's arguments."""
    return TilePattern(frames, tokens_per_frame, tuple(references), prefix, suffix)

"""`tile_attention` as standard ONNX ops: one `Attention` for the global rows, one for all frames.

The other frames become heads of their own: [B, N, n * P, D] and [B, N * n, P, D] are the same
memory, so nothing is transposed. With a mask they become samples instead, since a mask has one
head as a rule and would have to be copied for each. Constants are shapes and numbers of frames.
The nodes are not wrapped in an ONNX function: an engine has to inline one before it can fuse
`Attention`.
"""

from collections.abc import Sequence

from optimize.kernels.onnx_ops import OnnxOps, Size, Value
from optimize.kernels.tile_attention.pattern import Range, TilePattern, pattern_of

ROWS = 2
"""The dimension of the rows in [B, N, S, D]."""

SWAPPED = [0, 2, 1, 3, 4]
"""Exchanges heads and frames."""


def lower(
    ops: OnnxOps,
    query: Value,
    key: Value,
    value: Value,
    frames: int,
    tokens_per_frame: int,
    references: Sequence[int],
    prefix: int = 0,
    suffix: int = 0,
    mask: Value | None = None,
    scale: float | None = None,
) -> Value:
    """Attends to [global rows | own frame] with the frames folded into heads or samples."""
    pattern = pattern_of(frames, tokens_per_frame, references, prefix, suffix)
    if pattern.is_dense:
        seen = None if mask is None else _for_rows(ops, mask, pattern.length)
        return ops.op("Attention", query, key, value, seen, scale=scale)
    ranges = pattern.global_ranges
    seen = None if mask is None else _for_rows(ops, mask, pattern.global_length)
    global_query = _joined(ops, query, ranges, ROWS)
    global_rows = ops.op("Attention", global_query, key, value, seen, scale=scale)
    other_rows = _attend_by_frame(ops, query, key, value, pattern, mask, scale)
    parts = _cut(ops, global_rows, ranges) | _cut(ops, other_rows, pattern.other_ranges)
    return ops.op("Concat", *(parts[piece] for piece in sorted(parts)), axis=ROWS)


def _attend_by_frame(
    ops: OnnxOps,
    query: Value,
    key: Value,
    value: Value,
    pattern: TilePattern,
    mask: Value | None,
    scale: float | None,
) -> Value:
    """[B, N, n * P, Dv]: the rows of the n other frames."""
    heads, width, value_width = ops.sizes(query)[1], ops.sizes(query)[3], ops.sizes(value)[3]
    count, tokens = len(pattern.others), pattern.tokens_per_frame
    seen = pattern.global_length + tokens

    def folded(item: Value, length: int, size: Size) -> Value:
        if mask is None:
            shape = [0, ops.product([heads, count]), length, size]
        else:
            item = ops.op("Transpose", item, perm=SWAPPED)
            shape = [-1, heads, length, size]
        return ops.op("Reshape", item, ops.shape(shape))

    result = ops.op(
        "Attention",
        folded(_other_frames(ops, query, pattern, width), tokens, width),
        folded(_with_globals(ops, key, pattern, width), seen, width),
        folded(_with_globals(ops, value, pattern, value_width), seen, value_width),
        None if mask is None else _masks_by_frame(ops, mask, query, pattern),
        scale=scale,
    )
    if mask is not None:
        result = ops.op("Reshape", result, ops.shape([-1, count, heads, tokens, value_width]))
        result = ops.op("Transpose", result, perm=SWAPPED)
    return ops.op("Reshape", result, ops.shape([0, heads, count * tokens, value_width]))


def _masks_by_frame(ops: OnnxOps, mask: Value, query: Value, pattern: TilePattern) -> Value:
    """[B * n, heads or 1, P, P + G]: what each row of each other frame sees."""
    batch, heads, tokens = ops.sizes(query)[0], ops.sizes(mask)[1], pattern.tokens_per_frame
    # The mask as keys of width 1: [B or 1, heads or 1, n, P + G, 1].
    column = ops.op("Transpose", mask, perm=[0, 1, 3, 2])
    columns = _with_globals(ops, column, pattern, 1)
    rows = ops.op("Transpose", columns, perm=[0, 2, 1, 4, 3])
    rows = ops.op("Expand", rows, ops.shape([batch, 1, 1, tokens, 1]))
    shape = [-1, heads, tokens, pattern.global_length + tokens]
    return ops.op("Reshape", rows, ops.shape(shape))


def _by_frame(ops: OnnxOps, x: Value, pattern: TilePattern, width: Size) -> Value:
    """[B, N, F, P, width]: the video's rows of x [B, N, S, width]."""
    if pattern.prefix or pattern.suffix:
        x = _slice(ops, x, (pattern.prefix, pattern.length - pattern.suffix), ROWS)
    shape = ops.shape([0, 0, pattern.frames, pattern.tokens_per_frame, width])
    return ops.op("Reshape", x, shape)


def _other_frames(ops: OnnxOps, x: Value, pattern: TilePattern, width: Size) -> Value:
    """[B, N, n, P, width]: the frames that are no reference, of x [B, N, S, width]."""
    frames = _by_frame(ops, x, pattern, width)
    return ops.op("Gather", frames, ops.integers(pattern.others), axis=ROWS)


def _with_globals(ops: OnnxOps, x: Value, pattern: TilePattern, width: Size) -> Value:
    """[B, N, n, P + G, width]: what each of these frames sees, of x [B, N, S, width].

    Whole frames are copied by one `Gather`, each frame after the references; text follows.
    """
    count, tokens = len(pattern.others), pattern.tokens_per_frame
    seen = [frame for other in pattern.others for frame in (*pattern.references, other)]
    frames = _by_frame(ops, x, pattern, width)
    tiles = ops.op("Gather", frames, ops.integers(seen), axis=ROWS)
    length = (len(pattern.references) + 1) * tokens
    tiles = ops.op("Reshape", tiles, ops.shape([0, 0, count, length, width]))
    text = [(0, pattern.prefix), (pattern.length - pattern.suffix, pattern.length)]
    text = [(start, stop) for start, stop in text if start < stop]
    if not text:
        return tiles
    rows = ops.op("Unsqueeze", _joined(ops, x, text, ROWS), ops.integers([ROWS]))
    repeated = ops.op("Expand", rows, ops.integers([1, 1, count, 1, 1]))
    return ops.op("Concat", tiles, repeated, axis=ROWS + 1)


def _for_rows(ops: OnnxOps, mask: Value, length: int) -> Value:
    """The key mask for `length` query rows: Attention broadcasts over batch and heads only."""
    return ops.op("Expand", mask, ops.integers([1, 1, length, 1]))


def _joined(ops: OnnxOps, x: Value, ranges: Sequence[Range], axis: int) -> Value:
    parts = [_slice(ops, x, piece, axis) for piece in ranges]
    return parts[0] if len(parts) == 1 else ops.op("Concat", *parts, axis=axis)


def _cut(ops: OnnxOps, x: Value, ranges: Sequence[Range]) -> dict[Range, Value]:
    """The reverse of `_joined`: the range of each part, and the part."""
    parts: dict[Range, Value] = {}
    position = 0
    for start, stop in ranges:
        end = position + stop - start
        parts[start, stop] = x if len(ranges) == 1 else _slice(ops, x, (position, end), ROWS)
        position = end
    return parts


def _slice(ops: OnnxOps, x: Value, piece: Range, axis: int) -> Value:
    start, stop = piece
    return ops.op("Slice", x, ops.integers([start]), ops.integers([stop]), ops.integers([axis]))

"""`tile_attention` as standard ONNX ops."""

from collections.abc import Sequence

from optimize.kernels.onnx_ops import OnnxOps, Value
from optimize.kernels.tile_attention.pattern import Range, pattern_of


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
    """One `Attention` for the global rows, one per other frame, and a `Concat` of the results."""
    pattern = pattern_of(frames, tokens_per_frame, references, prefix, suffix)

    def attend(rows: tuple[Range, ...], columns: tuple[Range, ...]) -> Value:
        keys, values = (_joined(ops, item, columns, 2) for item in (key, value))
        seen = None
        if mask is not None:
            # Attention broadcasts a mask over batch and heads only, so it needs every row.
            length = sum(stop - start for start, stop in rows)
            seen = _joined(ops, mask, columns, 3)
            seen = ops.op("Expand", seen, ops.integers([1, 1, length, 1]))
        return ops.op("Attention", _joined(ops, query, rows, 2), keys, values, seen, scale=scale)

    everything = ((0, pattern.length),)
    if pattern.is_dense:
        return attend(everything, everything)
    ranges = pattern.global_ranges
    rows = attend(ranges, everything)
    parts: list[tuple[int, Value]] = []
    position = 0
    for start, stop in ranges:
        parts.append((start, _slice(ops, rows, (position, position + stop - start), 2)))
        position += stop - start
    for frame in pattern.others:
        own = pattern.frame_range(frame)
        parts.append((own[0], attend((own,), (*ranges, own))))
    in_order = [part for _, part in sorted(parts, key=lambda item: item[0])]
    return ops.op("Concat", *in_order, axis=2)


def _joined(ops: OnnxOps, x: Value, ranges: tuple[Range, ...], axis: int) -> Value:
    parts = [_slice(ops, x, piece, axis) for piece in ranges]
    return parts[0] if len(parts) == 1 else ops.op("Concat", *parts, axis=axis)


def _slice(ops: OnnxOps, x: Value, piece: Range, axis: int) -> Value:
    start, stop = piece
    return ops.op("Slice", x, ops.integers([start]), ops.integers([stop]), ops.integers([axis]))

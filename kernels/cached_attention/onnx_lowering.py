"""`cached_attention` in ONNX.

One new row in single or half precision is ONNX Runtime's GroupQueryAttention, which writes the row
into the caches where input and output are bound to the same memory, and reads the rows in use only.
Its CPU kernel takes several new rows for a batch of 1 only, and heads of a multiple of 8. Whatever
else there is, other precisions too, is standard ops: ScatterND, a mask, Attention.
"""

from optimize.kernels.onnx_ops import OnnxOps, Size, Value
from optimize.kernels.scatter_rows import onnx_lowering as scatter_rows

GROUPED = ("float32", "float16")
INT32, BOOL = 6, 9
"""ONNX's numbers of dtypes."""


def lower(
    ops: OnnxOps,
    query: Value,
    key: Value,
    value: Value,
    key_cache: Value,
    value_cache: Value,
    lengths: Value,
    scale: float | None = None,
    sees: Value | None = None,
) -> tuple[Value, ...]:
    """Returns the attended rows and both caches."""
    count = ops.sizes(query)[2]
    widths = [ops.sizes(item)[3] for item in (query, value)]
    alone = sees is None and count == 1 and not ops.standard
    fits = widths[0] == widths[1] and isinstance(widths[0], int) and widths[0] % 8 == 0
    if alone and fits and ops.dtype(query) in GROUPED:
        return _grouped(ops, query, key, value, key_cache, value_cache, lengths, scale)
    new = ops.range(count)
    rows = ops.op("Add", ops.op("Unsqueeze", lengths, ops.integers([1])), new)
    keys = scatter_rows.scatter(ops, key_cache, rows, count, key, 2)
    values = scatter_rows.scatter(ops, value_cache, rows, count, value, 2)
    columns = ops.range(ops.sizes(key_cache)[2])
    if sees is None:
        last = ops.op("Unsqueeze", rows, ops.integers([1, 3]))  # [B, 1, S, 1]
        seen = ops.op("LessOrEqual", columns, last)
    else:
        seen = _seen(ops, columns, lengths, count, sees)
    # An attribute would have the scale in single precision.
    scale = widths[0] ** -0.5 if scale is None else scale
    scaled = ops.op("Mul", query, ops.number_like(scale, query))
    return ops.op("Attention", scaled, keys, values, seen, scale=1.0), keys, values


def _seen(ops: OnnxOps, columns: Value, lengths: Value, count: Size, sees: Value) -> Value:
    """[B, 1, S, L]: the old rows, and of the new ones those that each sees."""
    place = ops.op("Sub", columns, ops.op("Unsqueeze", lengths, ops.integers([1])))
    # A column of true before the new rows and one of false behind them.
    true = ops.op("Expand", ops.op("Cast", ops.integers([1]), to=BOOL), ops.shape([count, 1]))
    table = ops.op("Concat", true, sees, ops.op("Not", true), axis=1)
    last = ops.op("Unsqueeze", ops.shape([count]), ops.integers([0]))
    inside = ops.op("Min", ops.op("Max", place, ops.integers([-1])), last)
    index = ops.op("Add", inside, ops.integers([1]))
    gathered = ops.op("Gather", table, index, axis=1)  # [S, B, L]
    return ops.op("Unsqueeze", ops.op("Transpose", gathered, perm=[1, 0, 2]), ops.integers([1]))


def _grouped(
    ops: OnnxOps,
    query: Value,
    key: Value,
    value: Value,
    key_cache: Value,
    value_cache: Value,
    lengths: Value,
    scale: float | None,
) -> tuple[Value, ...]:
    batch, heads, count, width = ops.sizes(query)
    groups = ops.sizes(key)[1]

    def rows_first(item: Value, own_heads: int | Value) -> Value:
        moved = ops.op("Transpose", item, perm=[0, 2, 1, 3])
        return ops.op("Reshape", moved, ops.shape([batch, count, ops.product([own_heads, width])]))

    new = ops.shape([count])
    ends = ops.op("Add", lengths, new)
    last = ops.op("Cast", ops.op("Sub", ends, ops.integers([1])), to=INT32)
    longest = ops.op("Cast", ops.op("ReduceMax", ends, keepdims=0), to=INT32)
    result, keys, values = ops.op_many(
        "GroupQueryAttention",
        rows_first(query, heads),
        rows_first(key, groups),
        rows_first(value, groups),
        key_cache,
        value_cache,
        last,
        longest,
        outputs=3,
        domain="com.microsoft",
        num_heads=heads,
        kv_num_heads=groups,
        scale=scale,
    )
    split = ops.op("Reshape", result, ops.shape([batch, count, heads, width]))
    return ops.op("Transpose", split, perm=[0, 2, 1, 3]), keys, values

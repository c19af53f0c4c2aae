"""`cached_attention` in ONNX.

One new row in single or half precision is ONNX Runtime's GroupQueryAttention, which writes the row
into the caches where input and output are bound to the same memory, and reads the rows in use only.
Its CPU kernel takes several new rows for a batch of 1 only. They, and other precisions, are
standard ops: ScatterND, a mask, Attention.
"""

from optimize.kernels.onnx_ops import OnnxOps, Value
from optimize.kernels.scatter_rows import onnx_lowering as scatter_rows

GROUPED = ("float32", "float16")
INT32 = 6
"""The ONNX number of int32."""


def lower(
    ops: OnnxOps,
    query: Value,
    key: Value,
    value: Value,
    key_cache: Value,
    value_cache: Value,
    lengths: Value,
    scale: float | None = None,
) -> tuple[Value, ...]:
    """Returns the attended rows and both caches."""
    count = ops.sizes(query)[2]
    widths = [ops.sizes(item)[3] for item in (query, value)]
    if count == 1 and ops.dtype(query) in GROUPED and widths[0] == widths[1]:
        return _grouped(ops, query, key, value, key_cache, value_cache, lengths, scale)
    new = ops.range(count)
    rows = ops.op("Add", ops.op("Unsqueeze", lengths, ops.integers([1])), new)
    keys = scatter_rows.scatter(ops, key_cache, rows, count, key, 2)
    values = scatter_rows.scatter(ops, value_cache, rows, count, value, 2)
    columns = ops.range(ops.sizes(key_cache)[2])
    last = ops.op("Unsqueeze", rows, ops.integers([1, 3]))  # [B, 1, S, 1]
    seen = ops.op("LessOrEqual", columns, last)
    # An attribute would have the scale in single precision.
    scale = widths[0] ** -0.5 if scale is None else scale
    scaled = ops.op("Mul", query, ops.number_like(scale, query))
    return ops.op("Attention", scaled, keys, values, seen, scale=1.0), keys, values


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

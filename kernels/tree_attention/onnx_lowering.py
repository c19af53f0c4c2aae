"""`tree_attention` in ONNX: products with the cache as it lies and with the further rows, apart.

Joining keys first would copy the cache at each call; only the scores are joined.
"""

from optimize.kernels.onnx_ops import OnnxOps, Value

LAST_TWO = [0, 1, 3, 2]


def lower(
    ops: OnnxOps,
    query: Value,
    key: Value,
    value: Value,
    key_cache: Value,
    value_cache: Value,
    lengths: Value,
    sees: Value,
    scale: float | None = None,
) -> Value:
    """Returns the attended rows."""
    batch, heads, count, width = ops.sizes(query)
    groups, capacity, value_width = ops.sizes(key)[1], *ops.sizes(value_cache)[2:]
    total = ops.sizes(key)[2]
    scale = float(width) ** -0.5 if scale is None else scale
    scaled = ops.op("Mul", query, ops.number_like(scale, query))
    is_shared = heads != groups

    def by_group(item: Value, last: object) -> Value:
        """Heads that share keys become rows of one head."""
        return ops.op("Reshape", item, ops.shape([batch, groups, -1, last])) if is_shared else item

    def by_head(item: Value, last: object) -> Value:
        if not is_shared:
            return item
        return ops.op("Reshape", item, ops.shape([batch, heads, count, last]))

    grouped = by_group(scaled, width)
    minus = ops.number_like(float("-inf"), query)
    columns = ops.range(capacity)
    old = ops.op("Less", columns, ops.op("Unsqueeze", lengths, ops.integers([1, 2, 3])))
    parts = []
    for keys, size, mask in ((key_cache, capacity, old), (key, total, sees)):
        turned = ops.op("Transpose", keys, perm=LAST_TWO)
        scores = by_head(ops.op("MatMul", grouped, turned), size)
        parts.append(ops.op("Where", mask, scores, minus))
    weights = ops.op("Softmax", ops.op("Concat", *parts, axis=-1), axis=-1)
    cut = ops.shape([capacity])
    first = ops.op("Slice", weights, ops.integers([0]), cut, ops.integers([3]))
    rest = ops.op("Slice", weights, cut, ops.integers([2**62]), ops.integers([3]))
    results = [
        ops.op("MatMul", by_group(share, size), values)
        for share, size, values in ((first, capacity, value_cache), (rest, total, value))
    ]
    return by_head(ops.op("Add", *results), value_width)

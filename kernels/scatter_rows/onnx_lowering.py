"""`scatter_rows` as one ONNX ScatterND whose slices are whole rows.

The cache enters ScatterND as it is, without a reshape: ONNX Runtime then skips the copy of the
cache when input and output are bound to the same memory. (A flattened cache costs that copy, since
a reshape in front of a graph output cannot share the output's memory.)
"""

from optimize.kernels.onnx_ops import OnnxOps, Size, Value


def lower(ops: OnnxOps, cache: Value, index: Value, rows: Value, dim: int) -> Value:
    """One ScatterND of as many rows as the index names."""
    return scatter(ops, cache, index, ops.sizes(index)[1], rows, dim)


def scatter(ops: OnnxOps, cache: Value, index: Value, count: Size, rows: Value, dim: int) -> Value:
    """Scatters with the full coordinates [B, ..., M, dim + 1] of every row; M is `count`.

    The coordinates depend on sizes and `index` only, so layers of equal shape share them.
    """
    sizes = ops.sizes(cache)
    dim = dim + len(sizes) if dim < 0 else dim
    shape = ops.shape([*sizes[:dim], count])
    coordinates = []
    for axis in range(dim):
        numbers = ops.op("Reshape", ops.range(sizes[axis]), ops.integers([-1] + [1] * (dim - axis)))
        coordinates.append(ops.op("Expand", numbers, shape))
    middle = ops.op("Unsqueeze", index, ops.integers(range(1, dim))) if dim > 1 else index
    coordinates.append(ops.op("Expand", middle, shape))
    last = ops.integers([-1])
    stacked = ops.op("Concat", *(ops.op("Unsqueeze", c, last) for c in coordinates), axis=-1)
    return ops.op("ScatterND", cache, stacked, rows)

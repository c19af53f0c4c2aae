"""`gather_rows` as one ONNX Gather over rows, so that each row is one block copy."""

from optimize.kernels.onnx_ops import OnnxOps, Value


def lower(ops: OnnxOps, x: Value, index: Value, dim: int) -> Value:
    """Flattens the dimensions up to `dim` and gathers with one index per row.

    The index of row m of prefix p (the position in the dimensions before `dim`) is p * N +
    index[b, m]. It depends on sizes and `index` only, so layers of equal shape share it.
    """
    sizes = ops.sizes(x)
    dim = dim + len(sizes) if dim < 0 else dim
    flat = flat_index(ops, sizes, index, dim)
    table = ops.op("Reshape", x, ops.shape([ops.product(sizes[: dim + 1]), *sizes[dim + 1 :]]))
    return ops.op("Gather", table, flat, axis=0)


def flat_index(ops: OnnxOps, sizes: tuple[int | Value, ...], index: Value, dim: int) -> Value:
    """The row numbers [B, ..., M] of `index` in x flattened up to `dim`."""
    inner = ops.product(sizes[1:dim])
    rows = sizes[dim]
    middle = ops.op("Unsqueeze", index, ops.integers(range(1, dim))) if dim > 1 else index
    offset: Value | None = None
    if inner != 1:
        numbers = ops.op("Mul", ops.range(inner), ops.shape([rows]))
        offset = ops.op("Reshape", numbers, ops.shape([1, *sizes[1:dim], 1]))
    if sizes[0] != 1:
        batch = ops.op("Mul", ops.range(sizes[0]), ops.shape([ops.product([inner, rows])]))
        batch = ops.op("Reshape", batch, ops.integers([-1] + [1] * dim))
        offset = batch if offset is None else ops.op("Add", offset, batch)
    return middle if offset is None else ops.op("Add", middle, offset)

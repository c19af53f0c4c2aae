"""`dynamic_threshold` as standard ONNX ops: the quantile from the largest magnitudes alone."""

import math

from optimize.kernels.onnx_ops import OnnxOps, Value


def lower(ops: OnnxOps, x: Value, ratio: float, max_value: float) -> Value:
    """Interpolates between the two smallest of the k largest magnitudes.

    Raises:
        ValueError: the size of a sample is not known.
    """
    sizes = ops.sizes(x)
    count = ops.product(sizes[1:])
    if not isinstance(count, int):
        raise ValueError(
            "dynamic_threshold: found samples of a size that a request decides, expected a known "
            "one; export with fixed height and width"
        )
    position = ratio * (count - 1)
    below = math.floor(position)
    k = count - below
    magnitude = ops.op("Reshape", ops.op("Abs", x), ops.integers([-1, count]))
    largest, _ = ops.op_many("TopK", magnitude, ops.integers([k]), outputs=2, axis=1)
    bound = ops.op("Gather", largest, ops.integers([k - 1]), axis=1)
    if position > below:
        above = ops.op("Gather", largest, ops.integers([k - 2]), axis=1)
        change = ops.op("Sub", above, bound)
        part = ops.op("Mul", change, ops.number_like(position - below, x))
        bound = ops.op("Add", bound, part)
    bound = ops.op("Max", bound, ops.number_like(1.0, x))
    if max_value != math.inf:
        bound = ops.op("Min", bound, ops.number_like(max_value, x))
    bound = ops.op("Reshape", bound, ops.integers([-1] + [1] * (len(sizes) - 1)))
    clipped = ops.op("Min", ops.op("Max", x, ops.op("Neg", bound)), bound)
    return ops.op("Div", clipped, bound)

"""`solver_step` as standard ONNX ops, in the same order of roundings."""

from collections.abc import Sequence

from optimize.kernels.onnx_ops import OnnxOps, Value
from optimize.kernels.solver_step.pattern import LEFT_OUT, SCALED, rows_of


def lower(
    ops: OnnxOps,
    latent: Value,
    output: Value,
    kept: Sequence[Value],
    coefficients: Value,
    pattern: str,
    noise: Value | None = None,
    guidance_scale: Value | None = None,
) -> tuple[Value, ...]:
    """Multiplies and adds column by column; the coefficients are split into numbers once."""
    prediction = ops.cast_like(output, latent)
    if guidance_scale is not None:
        unconditional, conditional = ops.op_many(
            "Split", prediction, outputs=2, axis=0, num_outputs=2
        )
        change = ops.op("Mul", guidance_scale, ops.op("Sub", conditional, unconditional))
        prediction = ops.op("Add", unconditional, change)
    columns = [latent, prediction, *kept] + ([] if noise is None else [noise])
    rows = rows_of(pattern, len(columns))
    numbers: Sequence[Value] = ()
    if SCALED in pattern:
        count = len(rows) * len(columns)
        flat = ops.op("Reshape", coefficients, ops.integers([-1]))
        numbers = ops.op_many("Split", flat, outputs=count, axis=0, num_outputs=count)
    results = []
    for row, letters in enumerate(rows):
        total: Value | None = None
        for place, (column, letter) in enumerate(zip(columns, letters, strict=True)):
            if letter == LEFT_OUT:
                continue
            number = row * len(columns) + place
            term = ops.op("Mul", column, numbers[number]) if letter == SCALED else column
            total = term if total is None else ops.op("Add", total, term)
        results.append(total)
    return tuple(results)

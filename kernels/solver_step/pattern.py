"""The pattern of a solver step: which columns each output reads, and how."""

LEFT_OUT, AS_IT_IS, SCALED = "0", "1", "x"
"""The letters: never read, taken as it is, multiplied by its coefficient."""


def rows_of(pattern: str, columns: int) -> tuple[str, ...]:
    """The words of a pattern, one letter per column.

    Raises:
        ValueError: a word has another length than `columns`, an unknown letter, or only '0'.
    """
    rows = tuple(pattern.split(","))
    for row in rows:
        if len(row) != columns or set(row) - {LEFT_OUT, AS_IT_IS, SCALED}:
            raise ValueError(
                f"solver_step: found {row!r} in pattern {pattern!r}, expected words of {columns} "
                "letters out of '0', '1' and 'x', one per column: latent, prediction, kept, noise"
            )
        if set(row) == {LEFT_OUT}:
            raise ValueError(
                f"solver_step: found {row!r} in pattern {pattern!r}, which reads no column, "
                "expected at least one '1' or 'x'"
            )
    return rows


def operations(pattern: str, guided: bool) -> int:
    """Multiplications and additions per element of the latent."""
    rows = pattern.split(",")
    products = sum(row.count(SCALED) for row in rows)
    sums = sum(len(row) - row.count(LEFT_OUT) - 1 for row in rows)
    return products + sums + (3 if guided else 0)

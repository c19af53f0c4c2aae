"""What a faster kernel can gain for the whole."""


def predicted_speedup(share: float, kernel_speedup: float) -> float:
    """1 / (1 - share + share / kernel_speedup): the speed-up of a whole by that of one part.

    Args:
        share: of the whole's time that the part takes before, in [0, 1].
        kernel_speedup: time of the part before divided by after, > 0.
    Raises:
        ValueError: a number is out of its range.
    Source: Amdahl (1967), "Validity of the single processor approach to achieving large scale
        computing capabilities".
    """
    if not 0 <= share <= 1 or not kernel_speedup > 0:
        raise ValueError(
            f"predicted_speedup: found share {share} and kernel_speedup {kernel_speedup}, expected "
            "a share in [0, 1] and a speed-up above 0"
        )
    return 1 / (1 - share + share / kernel_speedup)

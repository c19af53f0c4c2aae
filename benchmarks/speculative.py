"""The figures of drafts: loop overhead, speed on real text, losslessness, judge, allocation.

    python benchmarks/speculative.py --out build/bench/speculative.json

Each part runs in a process of its own. `--part NAME` runs one of them and prints its figures.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from parts import Figures, run_parts

sys.path.insert(0, str(Path(__file__).resolve().parent))


def loop(width: int = 1024) -> Figures:
    """A perfect draft: what the loop loses of the arithmetic ideal, and what transformers does.

    A narrower model, as of `--part loop 256`, is quick and shows only that the code runs.
    """
    import speculative_loop

    return speculative_loop.loop_overhead(width)


def greedy() -> Figures:
    """zoo:shakespeare, likeliest tokens: every draft against plain decoding and `generate`."""
    import speculative_real

    return speculative_real.greedy()


def sampled() -> Figures:
    """zoo:shakespeare, drawn tokens: one draft, blocks, and k-SEQ with several."""
    import speculative_real

    return speculative_real.sampled()


def lossless() -> Figures:
    """Verifiers by enumeration, a thousand greedy texts, ten thousand tokens in one session."""
    import speculative_lossless

    return speculative_lossless.lossless()


def drawn() -> Figures:
    """Drawn texts of every verifier against the enumerated distribution of the target's."""
    import speculative_drawn

    return speculative_drawn.drawn_texts()


def batches() -> Figures:
    """zoo:shakespeare in batches of 1, 4 and 16 prompts of unequal length."""
    import speculative_batches

    return speculative_batches.batches()


def judge() -> Figures:
    """zoo:arithmetic: accepted tokens and right answers with a judge and without."""
    import speculative_judge

    return speculative_judge.judge()


def allocation() -> Figures:
    """zoo:arithmetic: variance of the gradient with GVM's allocation and the uniform one."""
    import speculative_gvm

    return speculative_gvm.allocation()


PARTS: dict[str, Callable[..., Figures]] = {
    part.__name__: part
    for part in (loop, greedy, sampled, batches, lossless, drawn, judge, allocation)
}


if __name__ == "__main__":
    run_parts(__doc__, "speculative", PARTS, ("torch", "onnxruntime", "transformers", "numpy"))

"""The figures of visual token pruning: answers, prefill, tokens per second, equal tokens.

    python benchmarks/visual_pruning.py --out build/bench/visual_pruning.json

Each part runs in a process of its own. `--part NAME` runs one of them and prints its figures.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from parts import Figures, run_parts

sys.path.insert(0, str(Path(__file__).resolve().parent))


def localization() -> Figures:
    """zoo:find-the-digit unpruned, with FEATHER and with FastV at equal operations."""
    import visual_pruning_localization

    return visual_pruning_localization.localization_kept()


def prefill() -> Figures:
    """Speed of the pruned prefill against the ratio of operations, on both engines."""
    import visual_pruning_prefill

    return visual_pruning_prefill.prefill()


def tokens() -> Figures:
    """A session against eager `generate` and the optimum-onnx export."""
    import visual_pruning_tokens

    return visual_pruning_tokens.tokens()


def equality() -> Figures:
    """Greedy tokens against transformers, 100 prompts per family."""
    import visual_pruning_equality

    return visual_pruning_equality.equality()


PARTS: dict[str, Callable[[], Figures]] = {
    part.__name__: part for part in (localization, prefill, tokens, equality)
}


if __name__ == "__main__":
    run_parts(__doc__, "visual_pruning", PARTS, ("torch", "onnxruntime", "transformers", "numpy"))

"""Whether drawn texts have the target's distribution: Pearson's test on a small decoder.

Of 81 possible texts of four tokens, behind each of two prompts, the law is enumerated with the
decoder alone. 20 000 texts of each verifier come from ONNX Runtime. A draft that proposes its
likeliest tokens, while it says that it drew them, shows that a fault would be noticed.
"""

import sys
from pathlib import Path
from unittest.mock import patch

import torch
from parts import Figures
from speculative_timing import Sessions, with_draft

from optimize.passes.drafts import growing
from optimize.passes.drafts.catalog import register_draft

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.passes.drawn_texts import captured, drawn, laws, pair, worst_p_value

BATCH, SEEDS, THREADS = 500, 40, 1
MODEL = {"draft": "model", "source": "half right"}
VERIFIERS = {
    "exact": {**MODEL, "draft_length": 3},
    "block": {**MODEL, "draft_length": 3, "verifier": "block"},
    "kseq": {**MODEL, "draft_length": 2, "num_drafts": 2},
    "recursive": {**MODEL, "tree": ("0", "1", "00", "01", "000")},
}


def drawn_texts() -> Figures:
    """The p-value of every verifier, that of plain decoding, and that of the wrong draft."""
    torch.set_num_threads(THREADS)
    target, draft = pair()
    expected = laws(target)
    program = captured(target)
    register_draft("half right", captured(draft))
    programs = {name: with_draft(program, options) for name, options in VERIFIERS.items()}
    with patch.object(growing, "draws", _likeliest):
        wrong = with_draft(program, VERIFIERS["exact"])
    figures: Figures = {}
    with Sessions({"plain": program, **programs, "wrong": wrong}, THREADS) as sessions:
        for name in ("plain", *programs, "wrong"):
            found = drawn(sessions.session(name), target, BATCH, SEEDS)
            figures[f"chi_square_p_{name}"] = worst_p_value(found, expected)
            if name != "plain":
                figures[f"chi_square_acceptance_{name}"] = found.acceptance_rate
    figures["chi_square_texts"] = BATCH * SEEDS
    figures["chi_square_smallest_p"] = min(figures[f"chi_square_p_{name}"] for name in programs)
    figures["negative_control_p"] = figures.pop("chi_square_p_wrong")
    return figures


def _likeliest(p: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    return p.argmax(-1, keepdim=True).expand(-1, uniforms.shape[1])

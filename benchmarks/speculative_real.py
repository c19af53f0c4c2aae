"""Tokens per second on the zoo's language model of plays, with every draft and without.

Prompts are passages of a play that no model has seen. The length of drafts, and the tree of the
Chimera, are chosen on other passages than those that are timed.
"""

from typing import Any

import numpy as np
import torch
from parts import Figures
from speculative_timing import Sessions, Tokens, seconds_per_token, speedup, with_draft

from optimize.capture.from_decoder import Parts, capture_decoder
from optimize.ir.decode import DecodeLoop, Sampling
from optimize.ir.program import Program
from optimize.passes.drafts.catalog import register_draft
from optimize.recipes.zoo.as_llama import as_llama
from optimize.recipes.zoo.drafts import FILES
from optimize.recipes.zoo.shakespeare import (
    held_out_prompts,
    load_shakespeare,
    load_shakespeare_draft,
)

PROMPT, TOKENS, TUNED, TIMED = 32, 96, 4, 12
THREADS = 1
"""A call of so narrow a model is too short for a second thread to help."""

MODEL = {"draft": "model", "source": "draft"}
CHIMERA = {"draft": "chimera", "source": str(FILES["shakespeare-chimera"])}
TREES = {
    "tree of 7": ("0", "1", "00", "01", "000", "0000", "00000"),
    "tree of 10": ("0", "1", "2", "00", "01", "10", "000", "001", "0000", "00000"),
}
GREEDY: dict[str, list[dict[str, Any]]] = {
    "model": [{**MODEL, "draft_length": length} for length in (2, 3, 5)],
    "chimera": [
        *({**CHIMERA, "draft_length": length} for length in (2, 3, 4, 5)),
        *({**CHIMERA, "tree": tree} for tree in TREES.values()),
    ],
    "layers": [{"draft": "layers", "layers": 6, "draft_length": 2}],
    "lookup": [{"draft_length": length} for length in (2, 4)],
}
SAMPLED: dict[str, list[dict[str, Any]]] = {
    "exact": [{**MODEL, "draft_length": length} for length in (1, 2, 3, 4)],
    "block": [{**MODEL, "draft_length": length, "verifier": "block"} for length in (2, 3, 4)],
    "kseq": [
        {**MODEL, "draft_length": length, "num_drafts": count}
        for length, count in ((1, 4), (1, 8), (2, 4), (2, 8), (3, 4))
    ],
}


def _captured(sampling: Sampling | None) -> Program:
    """The target; its draft becomes a source."""
    loop = DecodeLoop(PROMPT, TOKENS, sampling=sampling)
    register_draft("draft", capture_decoder(Parts(load_shakespeare_draft()), loop))
    return capture_decoder(Parts(load_shakespeare()), loop)


def _prompts() -> list[Tokens]:
    prompts = held_out_prompts(TUNED + TIMED, PROMPT).numpy()
    return [prompts[number : number + 1] for number in range(len(prompts))]


def _best(program: Program, kinds: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Of each kind the options that were fastest on the prompts for tuning."""
    chosen = {}
    for kind, choices in kinds.items():
        programs = {str(n): with_draft(program, item) for n, item in enumerate(choices)}
        with Sessions(programs, THREADS) as sessions:
            seconds, _ = seconds_per_token(sessions.ways(), _prompts()[:TUNED])
        best = min(programs, key=lambda name: sum(seconds[name]))
        chosen[kind] = choices[int(best)]
    return chosen


def _described(options: dict[str, Any]) -> str:
    shown = {key: value for key, value in options.items() if key not in ("source", "draft")}
    return ", ".join(f"{key} {value}" for key, value in shown.items())


def greedy() -> Figures:
    """Likeliest tokens: the text of every draft must be that of plain decoding."""
    torch.set_num_threads(THREADS)
    program = _captured(None)
    chosen = _best(program, GREEDY)
    programs = {"plain": program} | {kind: with_draft(program, o) for kind, o in chosen.items()}
    target, draft = as_llama(load_shakespeare()), as_llama(load_shakespeare_draft())
    length = chosen["model"]["draft_length"]

    def generate(prompt: Tokens, seed: int, **options: Any) -> Tokens:
        ids = torch.from_numpy(prompt)
        made = target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=None,
            **options,
        )
        tokens: Tokens = made[:, PROMPT:].numpy()
        return tokens

    def assisted(prompt: Tokens, seed: int) -> Tokens:
        return generate(prompt, seed, assistant_model=draft)

    settings = draft.generation_config
    settings.num_assistant_tokens, settings.assistant_confidence_threshold = length, 0.0
    settings.num_assistant_tokens_schedule = "constant"
    figures: Figures = {}
    with Sessions(programs, THREADS) as sessions:
        ways = sessions.ways() | {"generate": generate, "assisted": assisted}
        seconds, tokens = seconds_per_token(ways, _prompts()[TUNED:])
        for kind in chosen:
            figures[f"{kind}_speedup"] = speedup(seconds, kind, "plain")
            figures[f"{kind}_tokens_per_call"] = sessions.kept(kind)["tokens_per_call"]
            figures[f"{kind}_acceptance_rate"] = sessions.kept(kind)["acceptance_rate"]
            figures[f"{kind}_options"] = _described(chosen[kind])
    for name in ("generate", "assisted"):
        figures[f"chimera_vs_{name}"] = speedup(seconds, "chimera", name)
        figures[f"model_draft_vs_{name}"] = speedup(seconds, "model", name)
    figures["assisted_speedup_over_generate"] = speedup(seconds, "assisted", "generate")
    same = [
        all(np.array_equal(plain, tokens[kind][number]) for kind in (*chosen, "generate"))
        for number, plain in enumerate(tokens["plain"])
    ]
    figures["greedy_texts_equal"] = sum(same)
    figures["greedy_texts"] = len(same)
    distinct = [len(set(text.ravel().tolist())) for text in tokens["plain"]]
    figures["distinct_tokens_per_text"] = float(np.mean(distinct))
    return figures


def sampled() -> Figures:
    """Drawn tokens at temperature 1."""
    torch.set_num_threads(THREADS)
    program = _captured(Sampling(top_p=None))
    chosen = _best(program, SAMPLED)
    programs = {"plain": program} | {kind: with_draft(program, o) for kind, o in chosen.items()}
    figures: Figures = {}
    with Sessions(programs, THREADS) as sessions:
        seconds, _ = seconds_per_token(sessions.ways(), _prompts()[TUNED:], repeats=2)
        for kind in chosen:
            figures[f"{kind}_sampled_speedup"] = speedup(seconds, kind, "plain")
            figures[f"{kind}_sampled_tokens_per_call"] = sessions.kept(kind)["tokens_per_call"]
            figures[f"{kind}_sampled_acceptance_rate"] = sessions.kept(kind)["acceptance_rate"]
            figures[f"{kind}_sampled_options"] = _described(chosen[kind])
    figures["kseq_gain"] = speedup(seconds, "kseq", "exact")
    figures["block_gain"] = speedup(seconds, "block", "exact")
    return figures

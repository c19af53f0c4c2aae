"""What the loop of draft and verification loses of the ideal, with a draft that is never wrong.

A target of 12 layers whose layers from the third on add nothing, and its first two layers as the
draft: whatever is proposed is kept, so n + 1 tokens cost one call of the target and n of a sixth of
it, ideally (n + 1) / (1 + n / 6) times less than n + 1 calls. The ideal takes a call of n + 1 rows
for as cheap as one of a single row, which holds where reading the weights is what takes time: the
width is 1024 here. At 512, on two cores, the weights are read too fast to hide 4 to 9 rows behind.
"""

import statistics

import numpy as np
import torch
from parts import Figures
from speculative_timing import Sessions, Tokens, Way, seconds_per_token, with_draft

from optimize.capture.from_decoder import Parts, capture_decoder
from optimize.ir.decode import DecodeLoop
from optimize.passes.drafts.catalog import register_draft
from optimize.recipes.zoo.as_llama import as_llama
from optimize.recipes.zoo.rotary_language_model import RotaryLanguageModel

LAYERS, DRAFT_LAYERS, WIDTH, HEADS, VOCABULARY = 12, 2, 1024, 16, 512
PROMPT, TOKENS, THREADS, REPEATS = 16, 96, 2, 3
LENGTHS = (3, 5, 8)


def perfect_pair(width: int = WIDTH) -> tuple[RotaryLanguageModel, RotaryLanguageModel]:
    """The target and its first layers, which say the same."""
    torch.manual_seed(0)
    hidden = width * 8 // 3 // 32 * 32
    options = (HEADS, hidden, PROMPT + TOKENS + 64)
    target = RotaryLanguageModel(VOCABULARY, width, LAYERS, *options).eval()
    for block in target.blocks[DRAFT_LAYERS:]:
        for linear in (block.to_out, block.from_hidden):
            torch.nn.init.zeros_(linear.weight)
    draft = RotaryLanguageModel(VOCABULARY, width, DRAFT_LAYERS, *options).eval()
    state = target.state_dict()
    draft.load_state_dict({name: state[name] for name in draft.state_dict()})
    return target, draft


def ideal(length: int) -> float:
    """How many times faster than plain decoding a loop without any loss is."""
    return (length + 1) / (1 + length * DRAFT_LAYERS / LAYERS)


def loop_overhead(width: int = WIDTH) -> Figures:
    """The share of the ideal that is reached, here and by assisted generation of transformers."""
    torch.set_num_threads(THREADS)
    target, draft = perfect_pair(width)
    prompt = torch.randint(3, VOCABULARY, (1, PROMPT)).numpy()
    figures: Figures = {}
    ours = _ours(target, draft, prompt)
    theirs = _assisted(target, draft, prompt)
    for name, efficiency in (("loop", ours), ("assisted_generation", theirs)):
        for length in LENGTHS:
            figures[f"{name}_efficiency_{length}"] = efficiency[length]
        figures[f"{name}_efficiency_min"] = min(efficiency.values())
    figures["assisted_generation_efficiency"] = figures["assisted_generation_efficiency_min"]
    return figures


def _ours(
    target: RotaryLanguageModel, draft: RotaryLanguageModel, prompt: Tokens
) -> dict[int, float]:
    loop = DecodeLoop(PROMPT, TOKENS)
    program = capture_decoder(Parts(target), loop)
    register_draft("perfect", capture_decoder(Parts(draft), loop))
    found = {}
    for length in LENGTHS:
        options = {"draft": "model", "source": "perfect", "draft_length": length}
        programs = {"plain": program, "draft": with_draft(program, options)}
        with Sessions(programs, THREADS) as sessions:
            found[length] = _efficiency(sessions.ways(), prompt, length)
    return found


def _assisted(
    target: RotaryLanguageModel, draft: RotaryLanguageModel, prompt: Tokens
) -> dict[int, float]:
    large, small = as_llama(target), as_llama(draft)
    settings = small.generation_config
    settings.num_assistant_tokens_schedule = "constant"
    settings.assistant_confidence_threshold = 0.0

    def generate(prompt: Tokens, seed: int, assistant: torch.nn.Module | None = None) -> Tokens:
        ids = torch.from_numpy(prompt)
        made = large.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=None,
            assistant_model=assistant,
        )
        tokens: Tokens = made[:, PROMPT:].numpy()
        return tokens

    def assisted(prompt: Tokens, seed: int) -> Tokens:
        return generate(prompt, seed, small)

    found = {}
    for length in LENGTHS:
        settings.num_assistant_tokens = length
        found[length] = _efficiency({"plain": generate, "draft": assisted}, prompt, length)
    return found


def _efficiency(ways: dict[str, Way], prompt: Tokens, length: int) -> float:
    """The median of paired ratios, as a share of the ideal.

    Raises:
        RuntimeError: the texts differ.
    """
    seconds, tokens = seconds_per_token(ways, [prompt] * REPEATS)
    for plain, drafted in zip(tokens["plain"], tokens["draft"], strict=True):
        if not np.array_equal(plain, drafted):
            raise RuntimeError("loop: found different texts, expected that of plain decoding")
    pairs = zip(seconds["plain"], seconds["draft"], strict=True)
    return statistics.median(plain / own for plain, own in pairs) / ideal(length)

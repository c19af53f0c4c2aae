"""Greedy tokens of captured programs beside transformers' own, 100 prompts per family."""

import torch
from parts import Figures

from optimize.capture.from_decoder import capture_decoder
from optimize.capture.language_parts import parts_of
from optimize.ir.decode import DecodeLoop
from optimize.recipes.zoo.language_families import (
    LANGUAGE_FAMILIES,
    VOCABULARY,
    language_example,
    reference_inputs,
)

PROMPTS, LENGTH, TOKENS = 100, 9, 4
TIE = 1e-5
"""Two best logits closer than this are a tie, which sums in another order may exchange."""


def equality() -> Figures:
    """Families, prompts whose tokens all agree, prompts with a tie, and prompts that differ."""
    torch.set_num_threads(1)
    table = {name: _family(name) for name in LANGUAGE_FAMILIES}
    return {
        "greedy_table": table,
        "greedy_prompts_that_differ": sum(row["differ"] for row in table.values()),
        "greedy_prompts_with_ties": sum(row["ties"] for row in table.values()),
    }


def _family(name: str) -> dict[str, int]:
    example = language_example(name)
    parts = parts_of(example.model, example.image_size, example.prefix)
    program = capture_decoder(parts, DecodeLoop(max_prompt=LENGTH + 1, max_new_tokens=TOKENS))
    torch.manual_seed(0)
    ids = torch.randint(3, VOCABULARY - 8, (PROMPTS, LENGTH))
    fields = {"input_ids": ids}
    pixels = None
    if parts.image_shape is not None:
        pixels = torch.randn(PROMPTS, *parts.image_shape)
        fields["pixel_values"] = pixels
    found = program(**fields)["tokens"]
    example.model.generation_config.eos_token_id = None
    made = example.model.generate(
        **reference_inputs(example.model, ids, pixels, example.prefix),
        max_new_tokens=TOKENS,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    expected = made.sequences[:, -TOKENS:]
    agree = torch.ones(PROMPTS, dtype=torch.bool)
    tied = torch.zeros(PROMPTS, dtype=torch.bool)
    for number, scores in enumerate(made.scores):
        best = scores.topk(2).values
        tied |= agree & ((best[:, 0] - best[:, 1]) < TIE)
        agree &= expected[:, number] == found[:, number]
    return {
        "agree": int((agree & ~tied).sum()),
        "ties": int(tied.sum()),
        "differ": int((~agree & ~tied).sum()),
    }

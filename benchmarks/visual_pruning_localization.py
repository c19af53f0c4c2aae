"""What pruning costs the answers of zoo:find-the-digit, at equal operations."""

import dataclasses
from typing import Any

import torch
from parts import Figures

from optimize.capture.from_decoder import capture_decoder
from optimize.ir.decode import DecodeLoop
from optimize.ir.image_span import image_span
from optimize.ir.program import Program
from optimize.measure.cost import graph_flops
from optimize.passes.prune_visual_tokens import PruneVisualTokens
from optimize.recipes.zoo.digits_data import load_digits_data
from optimize.recipes.zoo.find_the_digit import load_find_the_digit
from optimize.recipes.zoo.find_the_digit_data import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    Questions,
    held_out_scenes,
    localization,
    recognition,
)
from optimize.recipes.zoo.find_the_digit_judge import localization_score, recognition_score

SCENES, BATCH = 1000, 100
LOOP = DecodeLoop(max_prompt=PROMPT_TOKENS, max_new_tokens=ANSWER_TOKENS)
FEATHER = PruneVisualTokens(mode="static")
"""Cuts in proportion to the published ones: before layers 4 and 8 of 16."""
FASTV = PruneVisualTokens("fastv")
"""Published before layer 3 of 32, which is one and a half of 16: layers 1 and 2 are measured."""


def localization_kept() -> Figures:
    """Localization, recognition and where the kept tokens lie, at equal operations."""
    torch.set_num_threads(1)
    whole = capture_decoder(load_find_the_digit(), LOOP)
    ways: dict[str, PruneVisualTokens | None] = {
        "unpruned": None,
        "feather_static": FEATHER,
        "feather_official": dataclasses.replace(FEATHER, mode="official"),
    }
    for layer in (1, 2, 4):
        # 4 is where FEATHER begins.
        fastv = dataclasses.replace(FASTV, first_layer=layer)
        ways[f"fastv_layer_{layer}"] = _as_costly(whole, FEATHER, fastv)
    for layer in (1, 2):
        fastv = dataclasses.replace(FASTV, first_layer=layer, all_keys=True)
        ways[f"fastv_layer_{layer}_all_keys"] = _as_costly(whole, FEATHER, fastv)
    table: Figures = {}
    operations = _operations(whole, None)
    for name, item in ways.items():
        program = whole if item is None else item.rewrite(whole).program
        row = _answers(program, image_span(whole).tokens)
        row["flops_share"] = graph_flops(program.graphs["prefill"]) / operations
        if item is not None:
            row["keep_ratio"] = item.keep_ratio
        table[name] = row
    found = {name: row["localization"][0] for name, row in table.items()}
    feather = found["feather_static"]

    def times(suffix: str = "") -> float:
        fastv = [found[f"fastv_layer_{layer}{suffix}"] for layer in (1, 2)]
        return float(feather / (sum(fastv) / 2))

    return {
        "localization_table": table,
        "unpruned_localization": found["unpruned"],
        "localization_kept": feather / found["unpruned"],
        "localization_kept_official": found["feather_official"] / found["unpruned"],
        "localization_vs_fastv": times(),
        "localization_vs_fastv_all_keys": times("_all_keys"),
    }


def _as_costly(
    program: Program, other: PruneVisualTokens, item: PruneVisualTokens
) -> PruneVisualTokens:
    """A single-stage pass that keeps as many tokens as fit into the operations of another."""
    tokens, most = image_span(program).tokens, _operations(program, other)
    low, high = 1, tokens
    while low < high:
        middle = (low + high + 1) // 2
        # Half a token more, as the ratio is rounded down to whole tokens.
        tried = dataclasses.replace(item, keep_ratio=min(1.0, (middle + 0.5) / tokens))
        low, high = (middle, high) if _operations(program, tried) <= most else (low, middle - 1)
    return dataclasses.replace(item, keep_ratio=min(1.0, (low + 0.5) / tokens))


def _operations(program: Program, item: PruneVisualTokens | None) -> float:
    """Operations of a prefill, counted from its graph."""
    pruned = program if item is None else item.rewrite(program).program
    return graph_flops(pruned.graphs["prefill"])


def _answers(program: Program, tokens: int) -> dict[str, Any]:
    """Both scores with their intervals, and the mean place of kept tokens in raster order."""
    split = load_digits_data().held_out
    scenes = held_out_scenes(split, first=0, count=SCENES)
    where, places = _generated(program, scenes.pixels, localization(scenes), tokens)
    which, _ = _generated(program, scenes.pixels, recognition(scenes), tokens)
    found, read = localization_score(where, scenes), recognition_score(which, scenes)
    row: dict[str, Any] = {
        "localization": [found.value, found.low, found.high],
        "recognition": [read.value, read.low, read.high],
    }
    return row | {f"mean_place_{stage}": place for stage, place in places.items()}


def _generated(
    program: Program, pixels: torch.Tensor, questions: Questions, tokens: int
) -> tuple[torch.Tensor, dict[str, float]]:
    stages = [slot.name for slot in program.loop.slots if slot.name.startswith("kept_")]
    answers, places = [], {stage: [] for stage in stages}
    for start in range(0, len(pixels), BATCH):
        part = slice(start, start + BATCH)
        run = program.prepared(
            {"pixel_values": pixels[part], "input_ids": questions.prompts[part]}, None
        )
        answers.append(torch.from_numpy(run.execute()["tokens"]))
        for stage in stages:
            kept = torch.from_numpy(run.read(stage))
            places[stage].append(kept[kept >= 0].double() / (tokens - 1))
    return torch.cat(answers), {name: float(torch.cat(p).mean()) for name, p in places.items()}

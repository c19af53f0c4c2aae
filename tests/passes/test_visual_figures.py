"""What pruning saves, by the counts of the literature and on a tiny model."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import nn

from optimize.capture.from_decoder import Parts, capture_decoder
from optimize.capture.language_parts import parts_of
from optimize.ir.decode import DecodeLoop
from optimize.ir.layer_widths import LayerWidths, layer_widths
from optimize.ir.program import Program
from optimize.ir.record import Record
from optimize.ir.report import Report
from optimize.measure.cost import graph_flops
from optimize.measure.prefill_cost import cache_bytes, flops_at, layer_cost, tokens_by_layer
from optimize.passes.pipeline import run_passes
from optimize.passes.prune_visual_tokens import PruneVisualTokens
from optimize.passes.visual_figures import displayable, mean_position
from optimize.recipes.zoo.language_families import language_example
from optimize.report.json_file import render_json
from optimize.report.visual_tokens import VisualTokens, visual_tokens
from tests.passes.tiny_vlm import GRID, IMAGE, KEY_WIDTH, LAYERS, PERCEPTRON, WIDTH, tiny_vlm

pytest.importorskip("transformers")

TOKENS = GRID[0] * GRID[1]
LLAMA_7B = LayerWidths(4096, 11008, gated=True)
FEATHER, FASTV = ([274.8, 24], [8, 16]), ([729 * 0.25], [3])


def share_cut(before: list[float], after: list[float]) -> float:
    return 1 - sum(after) / sum(before)


def request(text: int = 9, **fields: Any) -> dict[str, Any]:
    generator = np.random.default_rng(3)
    return {
        "input_ids": generator.integers(3, 49, (1, text)),
        "pixel_values": generator.normal(size=(1, 3, IMAGE, IMAGE)).astype(np.float32),
        "seed": 0,
        **fields,
    }


def pruned(item: PruneVisualTokens, **fields: Any) -> tuple[Program, VisualTokens]:
    after = run_passes(tiny_vlm(), [item], calibration=[request(**fields)])
    # What is kept with a bundle is JSON.
    kept = json.loads(render_json(after.report))["passes"][0]["details"]
    record = replace(after.history[0], details=kept)
    figures = visual_tokens(replace(after.report, passes=(record,)))
    assert figures is not None
    assert figures == visual_tokens(after.report)
    return after, figures


def pixels_of(picture: str | None) -> Any:
    """The pixels that a page shows of a picture in base64."""
    assert picture is not None
    return VisualTokens("feather", 1, 1, None, picture, (), None, (), ()).pixels


@pytest.mark.parametrize(("shares", "cuts", "published"), [
    ([0.377, 0.033], [8, 16], 0.639),
    ([0.25], [3], 0.680),
])  # fmt: skip
def test_linear_part_of_visual_tokens_as_published(
    shares: list[float], cuts: list[int], published: float
) -> None:
    counts = tokens_by_layer(1.0, shares, cuts, 32)
    assert share_cut([1.0] * 32, counts) == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize(("stages", "text", "expected"), [
    (FEATHER, 0, 0.641),
    (FASTV, 0, 0.685),
    (FEATHER, 60, 0.594),
    (FASTV, 60, 0.634),
])  # fmt: skip
def test_formula_with_and_without_text(
    stages: tuple[list[float], list[int]], text: int, expected: float
) -> None:
    counts = tokens_by_layer(729, *stages, 32)
    before = [layer_cost(729 + text, LLAMA_7B)] * 32
    after = [layer_cost(count + text, LLAMA_7B) for count in counts]
    assert share_cut(before, after) == pytest.approx(expected, abs=5e-4)


def test_layer_cost_counts_a_gate_as_one_more_matrix() -> None:
    plain, gated = (LayerWidths(8, 32, gated) for gated in (False, True))
    assert layer_cost(5, plain) == 4 * 5 * 64 + 2 * 25 * 8 + 2 * 5 * 8 * 32
    assert layer_cost(5, gated) - layer_cost(5, plain) == 5 * 8 * 32


def test_tokens_by_layer_need_a_count_per_cut() -> None:
    assert tokens_by_layer(9, [4, 2], [1, 3], 5) == [9, 4, 4, 2, 2]
    with pytest.raises(ValueError, match="zip"):
        tokens_by_layer(9, [4], [1, 3], 5)


def test_mean_position_is_a_half_without_bias() -> None:
    assert mean_position(np.arange(729), 729) == 0.5
    assert mean_position(np.arange(729 - 81, 729), 729) == pytest.approx(1 - 40 / 728)
    assert mean_position(np.array([0]), 729) == 0 and mean_position(np.array([0]), 1) == 0.5


def test_widths_are_read_from_the_graph() -> None:
    assert layer_widths(tiny_vlm().graphs["prefill"]) == LayerWidths(WIDTH, PERCEPTRON, True)


class Plain(nn.Sequential):
    """A perceptron without a gate."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(32, 40), nn.GELU(), nn.Linear(40, 32))


class Unusual(nn.Sequential):
    """A perceptron of three matrices in a row."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 20), nn.Linear(20, 32))


@pytest.mark.parametrize(("made", "expected"), [
    (Plain, LayerWidths(32, 40, False)),
    (Unusual, None),
])  # fmt: skip
def test_widths_of_other_perceptrons(made: Any, expected: LayerWidths | None) -> None:
    example = language_example("llava")
    for layer in example.model.model.language_model.layers:
        layer.mlp = made()
    parts = parts_of(example.model, prefix=example.prefix)
    loop = DecodeLoop(max_prompt=16, max_new_tokens=4)
    program = capture_decoder(Parts(parts.decoder, parts.vision, (3, 24, 24)), loop)
    assert layer_widths(program.graphs["prefill"]) == expected


def test_operations_at_other_sizes() -> None:
    program = tiny_vlm()
    prefill = program.graphs["prefill"]
    traced = {"batch": 2, "prompt": int(prefill.node("input_ids").meta["val"].shape[1].node.hint)}
    assert flops_at(prefill, traced) == graph_flops(prefill)
    assert flops_at(prefill, {**traced, "batch": 4}) == pytest.approx(
        2 * graph_flops(prefill), rel=0.01
    )
    # Each further row adds the projections of its keys, two operations for each value of them.
    one, two = (flops_at(prefill, {"batch": 1, "prompt": text}) for text in (10, 11))
    matrices = 2 * WIDTH**2 + 2 * WIDTH * KEY_WIDTH + 3 * WIDTH * PERCEPTRON
    assert two - one > 2 * matrices * LAYERS


@pytest.mark.parametrize("mode", ["static", "official"])
def test_figures_of_a_prompt(mode: Any) -> None:
    after, figures = pruned(PruneVisualTokens(mode=mode))
    first, second = figures.stages
    assert (figures.image_tokens, figures.text_tokens, figures.grid) == (TOKENS, 9, GRID)
    assert (first.layer, second.layer) == (2, 4)
    uniform = {row * GRID[1] + column for row in (0, 3, 6) for column in (0, 3, 6)}
    assert set(first.marked) == uniform and uniform <= set(first.kept)
    assert set(second.kept) < set(first.kept) and second.marked == ()
    assert sum(figures.row_shares(first.kept, len(first.kept))) == pytest.approx(1)
    if mode == "static":
        assert [len(stage.kept) for stage in figures.stages] == [25, 2]
    counts = tokens_by_layer(TOKENS, [len(first.kept), len(second.kept)], [2, 4], LAYERS)
    widths = LayerWidths(WIDTH, PERCEPTRON, True)
    whole, visual, linear, counted = figures.work
    for saving, text in ((whole, 9), (visual, 0)):
        expected = sum(layer_cost(count + text, widths) for count in counts)
        assert saving.before == LAYERS * layer_cost(TOKENS + text, widths)
        assert saving.after == expected
    assert linear.share == pytest.approx(share_cut([TOKENS] * LAYERS, counts))
    for saving, program in ((counted.before, tiny_vlm()), (counted.after, after)):
        assert saving == flops_at(program.graphs["prefill"], {"batch": 1, "prompt": 9})
    assert 0.4 < counted.share < whole.share + 0.02


def test_bytes_of_caches_follow_the_formula() -> None:
    after, figures = pruned(PruneVisualTokens())
    slots, held = figures.cache
    first, second = (len(stage.kept) for stage in figures.stages)
    saved = 2 * 4 * KEY_WIDTH * (2 * (TOKENS - first) + (LAYERS - 4) * (TOKENS - second))
    assert slots.before - slots.after == held.before - held.after == saved
    assert held.before == 2 * 4 * KEY_WIDTH * LAYERS * (TOKENS + 9)
    caches = [slot for slot in after.loop.slots if slot.name.startswith(("key_", "value_"))]
    sizes = [np.prod([int(size) for size in slot.shape[1:]]) for slot in caches]
    assert 4 * sum(sizes) == slots.after == cache_bytes(after.loop)


def test_single_stage_without_grid() -> None:
    _, figures = pruned(PruneVisualTokens(criterion="fastv", keep_ratio=0.25))
    (stage,) = figures.stages
    assert (stage.layer, len(stage.kept), stage.marked) == (1, 16, ())
    assert "16 of 64 kept (25.0%)" in figures.caption(stage)


def test_tokens_and_picture_are_those_of_the_request() -> None:
    important = [5, 17, 18, 40]
    importance = np.zeros((1, TOKENS), np.float32)
    importance[0, important] = [0.9, 0.8, 0.7, 0.6]
    item = PruneVisualTokens("external", keep_ratio=4.5 / TOKENS, stride=None)
    # The field is of the rewritten program alone, so results cannot be compared with its reference.
    after = item.rewrite(tiny_vlm()).program
    fields = request(importance=importance)
    fields.pop("seed")
    details = item.figures(tiny_vlm(), after, fields)
    figures = visual_tokens(Report(passes=(Record("prune_visual_tokens", details=details),)))
    assert figures is not None
    first, second = figures.stages
    assert list(first.kept) == important and first.marked == ()
    assert second.kept == (5,)
    assert first.mean_position == pytest.approx(sum(important) / 4 / (TOKENS - 1))
    values = request()["pixel_values"][0].astype(np.float64)
    unit = (values - values.min()) / (values.max() - values.min())
    assert figures.pixels is not None
    assert (figures.pixels == np.rint(unit * 255).transpose(1, 2, 0)).all()


def test_padding_is_not_counted() -> None:
    _, figures = pruned(PruneVisualTokens(), text=14, lengths=np.array([9]))
    assert figures.text_tokens == 9
    assert figures.cache[1].before == 2 * 4 * KEY_WIDTH * LAYERS * (TOKENS + 9)


def test_first_sample_of_a_batch_is_shown() -> None:
    both = request()
    pixels = np.concatenate([both["pixel_values"], np.zeros((1, 3, IMAGE, IMAGE), np.float32)])
    ids = both["input_ids"].repeat(2, 0)
    _, figures = pruned(PruneVisualTokens(), input_ids=ids, pixel_values=pixels)
    _, alone = pruned(PruneVisualTokens())
    assert figures == alone


def test_no_figures_where_nothing_is_run() -> None:
    after = run_passes(tiny_vlm(), [PruneVisualTokens()], verify=False)
    assert "visual_tokens" not in after.history[0].details
    assert visual_tokens(after.report) is None


def test_pictures_are_grey_or_coloured_and_fit_a_page() -> None:
    grey = np.array([[[-1.0, 0.0], [1.0, -1.0]]], np.float32)
    shown = pixels_of(displayable(grey))
    assert shown.tolist() == [[[0] * 3, [128] * 3], [[255] * 3, [0] * 3]]
    large = np.zeros((3, 1025, 600), np.float32)
    assert pixels_of(displayable(large)).shape == (342, 200, 3)
    assert (pixels_of(displayable(large)) == 128).all()


@pytest.mark.parametrize("values", [np.zeros((2, 4, 4)), np.full((3, 4, 4), np.nan)])
def test_what_is_no_picture_is_left_out(values: Any) -> None:
    assert displayable(values.astype(np.float32)) is None

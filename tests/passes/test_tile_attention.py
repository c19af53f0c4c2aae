"""tile_attention rewrites, declines with reasons, has the right numbers, and exports."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from optimize.capture.from_denoiser import capture
from optimize.export.bundle import export_bundle
from optimize.ir.errors import PassDeclined
from optimize.kernels.tile_attention.pattern import tile_density
from optimize.passes.cache_regions import CacheRegions
from optimize.passes.calibration import requests
from optimize.passes.fuse_solver import FuseSolver
from optimize.passes.pipeline import run_passes
from optimize.passes.tile_attention import TileAttention
from optimize.passes.tile_check import sampled_rows_error, tile_nodes
from optimize.passes.trajectory import denoiser_inputs
from optimize.recipes.zoo.families import example
from optimize.runtime.session import load
from tests.passes.tiny_video import FRAMES, HEIGHT, WIDTH, tiny_video

VIDEOS = ("wan", "cogvideox", "hunyuanvideo")
SDPA = torch.ops.aten.scaled_dot_product_attention.default


def predictions(program):
    """At three moments of a run of the dense program."""
    request = {**requests(tiny_video())[0], "seed": 0}
    graph = program.graphs["denoiser"]
    inputs = denoiser_inputs(tiny_video(), request, 3)
    return torch.stack([graph.run(program.weights, each)["prediction"] for each in inputs])


def family_program(name, dtype=torch.float32, frames=5, steps=4):
    made = example(name, dtype=dtype, frames=frames)
    program = capture(made.module, made.inputs, loop=made.loop(steps))
    return made, program


# Rewrites


@pytest.mark.parametrize("name", VIDEOS)
def test_rewrites_the_self_attention_of_video_families_and_nothing_else(name):
    made, before = family_program(name)
    after = run_passes(
        before, [TileAttention(references=2)], calibration=requests(before, None, made.inputs)
    )
    graph = after.graphs["denoiser"]
    nodes = tile_nodes(graph)
    record = after.history[0]
    expected = {"wan": (2, 0, 0, 2), "cogvideox": (2, 7, 0, 0), "hunyuanvideo": (3, 0, 7, 1)}
    sites, prefix, suffix, dense = expected[name]
    assert len(nodes) == sites == len(record.sites)
    for node in nodes:
        frames, tokens, references, before_text, after_text, mask = node.args[3:9]
        assert (frames, tokens, list(references)) == (5, 24, [0, 3])
        assert (before_text, after_text) == (prefix, suffix)
        assert (mask is not None) == (name == "hunyuanvideo")
    # Cross-attention of Wan, and the refiner of HunyuanVideo's text, stay as they are.
    assert sum(node.target is SDPA for node in graph.graph.nodes) == dense
    assert record.flops_after < record.flops_before
    assert before.graphs["denoiser"].graph is not graph.graph
    assert not tile_nodes(before.graphs["denoiser"])


def test_names_sites_after_the_modules_they_come_from():
    _, before = family_program("wan")
    after = run_passes(before, [TileAttention(references=2)], verify=False)
    assert after.history[0].sites == ("blocks.0.attn1", "blocks.1.attn1")
    forms = {"blocks.0.attn1": "per_frame", "blocks.1.attn1": "per_frame"}
    assert after.history[0].details["forms"] == forms


def test_a_list_sets_each_layer_and_all_frames_leave_a_layer_alone():
    after = run_passes(tiny_video(), [TileAttention(references=(1, FRAMES, 3))])
    nodes = tile_nodes(after.graphs["denoiser"])
    assert [list(node.args[5]) for node in nodes] == [[0], [0, 2, 4]]
    layers = after.history[0].details["tiles"]["layers"]
    densities = [tile_density(FRAMES, count) for count in (1, FRAMES, 3)]
    assert [layer["density"] for layer in layers] == densities


@pytest.mark.parametrize("order", ["hwf", "hfw"], ids=["frames-last", "frames-between"])
@pytest.mark.parametrize("text", [0, 5])
def test_tokens_in_another_order_are_put_frame_after_frame(order, text):
    item = TileAttention(references=(1, 2, 3))
    programs = [run_passes(tiny_video(each, text=text), [item]) for each in ("fhw", order)]
    major, other = (predictions(program) for program in programs)
    assert torch.allclose(major, other, rtol=0, atol=1e-12)
    dense = predictions(tiny_video(text=text))
    assert (major - dense).abs().max() > 1e-3  # control: the tiles do change the result


def test_frames_that_are_given_divide_tokens_without_dimensions():
    made = example("flux")
    program = capture(made.module, made.inputs, loop=made.loop(4))
    after = run_passes(program, [TileAttention(references=1, frames=4)])
    node = tile_nodes(after.graphs["denoiser"])[0]
    assert (node.args[3], node.args[4], node.args[6]) == (4, 6, 7)


# Declines


@pytest.mark.parametrize(
    ("options", "item", "reason"),
    [
        ({"frames": 2}, TileAttention(), "found 2 frames, expected at least 3"),
        ({}, TileAttention(references=(1, 2)), "references for 2 layers, expected one for each"),
        ({}, TileAttention(references=9), "found 9 reference frames, expected at most the 6"),
        ({}, TileAttention(candidates=(2, 7)), "found 7 reference frames, expected at most"),
        ({}, TileAttention(frames=5), "found 5 frames for 36 tokens, expected a divisor of 36"),
        ({"attention": {"is_causal": True}}, TileAttention(), "the attention is causal"),
        (
            {"attention": {"attn_mask": torch.ones(36, 36, dtype=torch.bool).tril()}},
            TileAttention(),
            r"its mask \[36, 36\] differs from query to query",
        ),
        ({"padding": 4}, TileAttention(), "2 token axes of sizes 36, 4"),
        ({}, TileAttention(budget=1e-9), "no layer can be made sparser within the budget"),
        ({}, TileAttention(budget=0.0), "no layer can be made sparser within the budget of 0"),
    ],
)
def test_declines_with_its_reason(options, item, reason):
    with pytest.raises(PassDeclined, match=reason):
        run_passes(tiny_video(**options), [item])


@pytest.mark.parametrize(
    ("name", "reason"),
    [("dit", "spread over 2 dimensions of the latent"), ("flux", "spread over 1 dimensions")],
)
def test_declines_what_is_no_video(name, reason, captured):
    _, program = captured(name, torch.float32)
    with pytest.raises(PassDeclined, match=reason):
        run_passes(program, [TileAttention()])


def test_declines_a_fused_loop():
    fused = run_passes(tiny_video(), [FuseSolver()])
    with pytest.raises(PassDeclined, match="list it before fuse_solver"):
        run_passes(fused, [TileAttention()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1.0}, "budget: found 1.0"),
        ({"moments": 0}, "moments: found 0"),
        ({"frames": 2}, "frames: found 2"),
        ({"references": "some"}, "references: found 'some'"),
        ({"references": 0}, r"references: found \[0\]"),
        ({"references": (2, 0)}, r"references: found \[2, 0\]"),
        ({"candidates": (2, 2)}, "no number twice"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        TileAttention(**options)


# Numerics


@pytest.mark.parametrize("name", VIDEOS)
def test_all_frames_as_references_change_no_bit(name):
    made, before = family_program(name)
    request = requests(before, None, made.inputs)[0]
    after = run_passes(before, [TileAttention(references="all")], verify=False)
    assert len(tile_nodes(after.graphs["denoiser"])) in (2, 3)
    assert torch.equal(after(**request)["latent"], before(**request)["latent"])


def test_rows_of_references_and_text_equal_dense_ones_in_the_first_layer():
    before = tiny_video(text=5, layers=1)
    after = run_passes(before, [TileAttention(references=2)])
    dense, tiled = predictions(before), predictions(after)
    same = (dense - tiled).abs().amax(dim=(0, 1, 2, 4, 5)) < 1e-12
    assert same.tolist() == [frame in (0, 3) for frame in range(FRAMES)]


def test_the_oracle_finds_tiles_that_are_not_the_mask(monkeypatch):
    after = run_passes(tiny_video(), [TileAttention(references=1)])
    (inputs,) = denoiser_inputs(after, {**requests(after)[0], "seed": 0}, 1)
    assert [result.holds for result in sampled_rows_error(after, inputs)] == [True]

    def all_pairs(pattern, device, rows):
        return torch.ones(len(rows), pattern.length, dtype=torch.bool, device=device)

    monkeypatch.setattr("optimize.passes.tile_check.allowed_pairs", all_pairs)
    assert [result.holds for result in sampled_rows_error(after, inputs)] == [False]


# With other passes, exported


@pytest.mark.parametrize("name", VIDEOS)
def test_exports_with_cached_regions_and_a_fused_solver(name, tmp_path):
    made, before = family_program(name, steps=6)
    passes = [
        CacheRegions(0.5, warmup=2),
        TileAttention(budget=0.05, moments=2),
        FuseSolver(solver="unipc", steps=6),
    ]
    calibration = requests(before, None, made.inputs)
    after = run_passes(before, passes, calibration=calibration)
    assert len(tile_nodes(after.graphs["step"])) == len(after.history[1].sites) > 0
    session = load(export_bundle(after, tmp_path / "bundle"), threads=1)
    request = calibration[0]
    found = session(**request)["latent"]
    expected = after(**request)["latent"].numpy()
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < 1e-4 * scale


def test_a_batch_of_another_size_runs():
    after = run_passes(tiny_video("hwf", text=5), [TileAttention(references=2)])
    latent = torch.randn(3, 4, FRAMES, HEIGHT, WIDTH, dtype=torch.float64)
    whole = after(latent=latent)["latent"]
    single = torch.cat([after(latent=latent[row : row + 1])["latent"] for row in range(3)])
    assert (whole - single).abs().max() < 1e-12 * whole.abs().max()


def test_fitted_options_stand_in_the_record_and_need_no_second_search(monkeypatch):
    first = run_passes(tiny_video(), [TileAttention(budget=0.1)])
    options = first.history[0].options
    assert isinstance(options["references"], tuple) and len(options["references"]) == 3

    def fail(*_, **__):
        raise AssertionError("searched again")

    monkeypatch.setattr("optimize.passes.tile_attention.search", fail)
    second = run_passes(tiny_video(), [TileAttention(**options)])
    assert torch.equal(predictions(first), predictions(second))
    assert second.history[0].sites == first.history[0].sites


def test_identity_keeps_the_other_options():
    item = TileAttention(budget=0.3, frames=4)
    assert item.identity() == replace(item, references="all")

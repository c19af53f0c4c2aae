"""Frames are found in the tokens by what becomes of them, not by their number."""

import pytest
import torch

from optimize.ir.attention_sites import attention_sites
from optimize.ir.axis_rules import infer_axes
from optimize.ir.frame_axis import FrameGrid, frame_grid, given_grid
from optimize.ir.token_axis import CannotSubset, token_axis
from tests.passes.tiny_video import FRAMES, HEIGHT, WIDTH, tiny_video


def found(program):
    graph = program.graphs["denoiser"]
    axes = infer_axes(graph)
    return graph, axes, token_axis(graph, axes)


@pytest.mark.parametrize(
    ("order", "grid"),
    [
        ("fhw", FrameGrid(FRAMES, 1, HEIGHT * WIDTH)),
        ("hwf", FrameGrid(FRAMES, HEIGHT * WIDTH, 1)),
        ("hfw", FrameGrid(FRAMES, HEIGHT, WIDTH)),
    ],
    ids=["frame-major", "frames-last", "frames-between"],
)
def test_frames_are_found_wherever_they_stand(order, grid):
    assert frame_grid(*found(tiny_video(order))) == grid
    assert grid.tokens_per_frame == HEIGHT * WIDTH
    assert grid.frame_major == (order == "fhw")


def test_equal_sizes_do_not_confuse_frames_with_rows():
    """As many frames as rows of tokens: only where they come from tells them apart."""
    grids = [frame_grid(*found(tiny_video(order, frames=HEIGHT))) for order in ("fhw", "hfw")]
    assert grids == [FrameGrid(2, 1, 6), FrameGrid(2, 2, 3)]


@pytest.mark.parametrize("name", ["wan", "cogvideox", "hunyuanvideo"])
def test_frames_of_the_families(name, captured):
    _, program = captured(name, torch.float32)
    assert frame_grid(*found(program)) == FrameGrid(2, 1, 24)


def test_pictures_have_no_frames(captured):
    _, program = captured("sd3", torch.float32)
    with pytest.raises(CannotSubset, match="2 dimensions of the latent, expected the 3 of a video"):
        frame_grid(*found(program))


def test_given_frames_must_divide_the_tokens():
    _, _, tokens = found(tiny_video())
    assert given_grid(tokens, 4) == FrameGrid(4, 1, 9)
    with pytest.raises(CannotSubset, match="found 5 frames for 36 tokens, expected a divisor"):
        given_grid(tokens, 5)


def test_sites_have_the_text_around_the_tokens(captured):
    for name, before, after in (("cogvideox", 7, 0), ("hunyuanvideo", 0, 7)):
        _, program = captured(name, torch.float32)
        sites, refused = attention_sites(*found(program))
        assert refused == {}
        assert {(site.prefix, site.suffix) for site in sites} == {(before, after)}


def test_frames_are_told_from_rows_of_equal_number_that_share_a_position_table():
    from optimize.capture.from_denoiser import capture
    from optimize.recipes.zoo.wan_shaped import wan_shaped

    made = wan_shaped(4, 8, 12, layers=1)  # four frames of four rows of six tokens
    program = capture(made.module, made.inputs, loop=made.loop(2))
    assert frame_grid(*found(program)) == FrameGrid(4, 1, 24)

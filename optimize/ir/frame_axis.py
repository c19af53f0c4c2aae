"""Where the frames of a video lie in the tokens of its denoiser: proven from axes, never assumed.

The prediction has the dimensions of the latent, so each factor of the token axis is found again in
the dimension of the prediction that it is unpatchified to. Of the three dimensions that tokens are
spread over, the first is time: [B, C, F, H, W] and [B, F, C, H, W] alike.
"""

import math
from dataclasses import dataclass

from optimize.ir.axes import Axes, Axis
from optimize.ir.graph import Graph
from optimize.ir.token_axis import CannotSubset

VIDEO_DIMENSIONS = 3
"""Time, height and width."""


@dataclass(frozen=True)
class FrameGrid:
    """How tokens are made of frames: `outer * frames * inner` of them, in this order.

    Attributes:
        frames: how many there are.
        outer: tokens of a frame that vary slower than the frames; 1 where frames follow each other.
        inner: tokens of a frame that vary faster.
    """

    frames: int
    outer: int
    inner: int

    @property
    def tokens_per_frame(self) -> int:
        return self.outer * self.inner

    @property
    def frame_major(self) -> bool:
        """Whether all tokens of a frame stand side by side."""
        return self.outer == 1


def frame_grid(graph: Graph, axes: Axes, tokens: Axis) -> FrameGrid:
    """The frames in the token axis of a denoiser.

    Args:
        graph: the denoiser; "prediction" is among its outputs.
        axes: its axes.
        tokens: its token axis.
    Raises:
        CannotSubset: the latent is no video, or its frames cannot be found in the tokens.
    """
    factors = axes.factors(tokens)
    prediction = axes.of(graph.output_nodes()["prediction"])
    homes = [_home(axes, factor, prediction) for factor in factors]
    spread = sorted({home for home in homes if home is not None})
    if None in homes or not spread:
        raise CannotSubset(
            f"the {tokens.extent} tokens are not found again in the dimensions of the prediction, "
            "so their frames are not known; give `frames`"
        )
    if len(spread) != VIDEO_DIMENSIONS:
        raise CannotSubset(
            f"the tokens are spread over {len(spread)} dimensions of the latent, expected the "
            f"{VIDEO_DIMENSIONS} of a video; give `frames` to divide them otherwise"
        )
    places = [place for place, home in enumerate(homes) if home == spread[0]]
    if places != list(range(places[0], places[-1] + 1)):
        raise CannotSubset("the frames lie in several places among the tokens, expected one")
    sizes = [_fixed(factor) for factor in factors]
    return FrameGrid(
        frames=math.prod(sizes[place] for place in places),
        outer=math.prod(sizes[: places[0]]),
        inner=math.prod(sizes[places[-1] + 1 :]),
    )


def given_grid(tokens: Axis, frames: int) -> FrameGrid:
    """The grid of a user who knows that tokens stand frame after frame.

    Raises:
        CannotSubset: the frames do not divide the tokens.
    """
    count = _fixed(tokens)
    if count % frames:
        raise CannotSubset(
            f"frames: found {frames} frames for {count} tokens, expected a divisor of {count}"
        )
    return FrameGrid(frames, 1, count // frames)


def _home(axes: Axes, factor: Axis, prediction: list[Axis]) -> int | None:
    """The dimension of the prediction that a factor of the tokens becomes a part of."""
    for dimension, axis in enumerate(prediction):
        if any(axes.find(inner) is axes.find(factor) for inner in axes.factors(axis)):
            return dimension
    return None


def _fixed(axis: Axis) -> int:
    if not isinstance(axis.extent, int):
        raise CannotSubset(
            f"the number of tokens depends on {axis.extent}, expected a fixed one; capture with "
            "fixed sizes"
        )
    return axis.extent

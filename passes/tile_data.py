"""What the report says of `tile_attention`, as JSON-able data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optimize.ir.attention_sites import Site
from optimize.ir.frame_axis import FrameGrid
from optimize.kernels.tile_attention.pattern import spread_references, tile_density
from optimize.report.frame_tiles import FrameTiles, LayerTiles


@dataclass(frozen=True)
class LayerFigures:
    """What the search found at a layer.

    Attributes:
        error: relative squared error of the prediction with this layer alone tiled.
        map: [F][F], the share of a frame's attention that goes to a frame; None without a map.
        text_share: the share that goes to text; None without a map.
    """

    error: float
    map: Sequence[Sequence[float]] | None = None
    text_share: float | None = None


@dataclass(frozen=True)
class Speed:
    """One denoiser call in PyTorch.

    Attributes:
        attention_share: of a dense call's time that the sites take, in [0, 1].
        predicted: speed-up of a call by Amdahl's law from that share and the sites' own speed-ups.
        measured: speed-up of a call.
    """

    attention_share: float
    predicted: float
    measured: float


def tiles_data(
    grid: FrameGrid,
    sites: Sequence[Site],
    counts: Sequence[int],
    *,
    budget: float | None = None,
    joint_error: float | None = None,
    figures: Sequence[LayerFigures | None] | None = None,
    speed: Speed | None = None,
) -> dict[str, Any]:
    """`record.details["tiles"]`: the choice, and what a search measured of it.

    Args:
        grid: the frames.
        sites: the layers, in order.
        counts: reference frames of each.
        budget: relative squared error of the prediction that was allowed.
        joint_error: that was found with all layers together.
        figures: of each layer.
        speed: of a denoiser call.
    """
    layers = tuple(
        LayerTiles(
            site=site.name,
            references=spread_references(grid.frames, count),
            density=tile_density(grid.frames, count),
            error=None if found is None else found.error,
            map=None if found is None else found.map,
            text_share=None if found is None else found.text_share,
        )
        for site, count, found in zip(sites, counts, figures or [None] * len(sites), strict=True)
    )
    return asdict(
        FrameTiles(
            frames=grid.frames,
            tokens_per_frame=grid.tokens_per_frame,
            budget=budget,
            joint_error=joint_error,
            attention_share=None if speed is None else speed.attention_share,
            predicted_speedup=None if speed is None else speed.predicted,
            measured_speedup=None if speed is None else speed.measured,
            layers=layers,
        )
    )

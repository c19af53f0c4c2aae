"""What the report says of `tile_attention`, as JSON-able data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optimize.ir.attention_sites import Site
from optimize.ir.frame_axis import FrameGrid
from optimize.kernels.tile_attention.pattern import spread_references, tile_density


@dataclass(frozen=True)
class AttentionMap:
    """Where the attention of a site goes; empty where it was not looked at.

    Attributes:
        map: [F][F], the share of a frame's attention that goes to a frame.
        text_share: the share that goes to text.
    """

    map: Sequence[Sequence[float]] = ()
    text_share: float = math.nan


@dataclass(frozen=True)
class Speed:
    """One denoiser call in PyTorch; NaN where nothing was measured.

    Attributes:
        attention_share: of a dense call's time that the sites take, in [0, 1].
        predicted: speed-up of a call by Amdahl's law from that share and the sites' own speed-ups.
        measured: speed-up of a call.
    """

    attention_share: float = math.nan
    predicted: float = math.nan
    measured: float = math.nan


NOT_MEASURED = Speed()


def tiles_data(
    grid: FrameGrid,
    sites: Sequence[Site],
    counts: Sequence[int],
    *,
    budget: float = math.nan,
    joint_error: float = math.nan,
    errors: Sequence[float] = (),
    maps: Sequence[AttentionMap] = (),
    speed: Speed = NOT_MEASURED,
) -> dict[str, Any]:
    """`record.details["tiles"]`: one entry per layer, and the figures of all together.

    Args:
        grid: the frames.
        sites: the layers, in order.
        counts: reference frames of each.
        budget: relative squared error of the prediction that was allowed.
        joint_error: that was found with all layers together.
        errors: that was found with each layer alone.
        maps: of each layer.
        speed: of a denoiser call.
    """
    layers = []
    for place, (site, count) in enumerate(zip(sites, counts, strict=True)):
        seen = maps[place] if maps else AttentionMap()
        layers.append(
            {
                "site": site.name,
                "references": list(spread_references(grid.frames, count)),
                "density": tile_density(grid.frames, count),
                "error": _number(errors[place]) if errors else None,
                "map": [list(row) for row in seen.map] or None,
                "text_share": _number(seen.text_share),
            }
        )
    return {
        "frames": grid.frames,
        "tokens_per_frame": grid.tokens_per_frame,
        "budget": _number(budget),
        "joint_error": _number(joint_error),
        "attention_share": _number(speed.attention_share),
        "predicted_speedup": _number(speed.predicted),
        "measured_speedup": _number(speed.measured),
        "layers": layers,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None

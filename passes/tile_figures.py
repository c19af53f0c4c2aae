"""Figures of a choice of tiles: where attention goes, and what the choice gains in PyTorch."""

import statistics
from collections.abc import Callable, Sequence

from optimize.ir.attention_sites import Site
from optimize.ir.frame_axis import FrameGrid
from optimize.ir.replay import Compute, Replay
from optimize.ir.token_axis import SDPA
from optimize.measure.amdahl import predicted_speedup
from optimize.measure.frame_attention import frame_attention
from optimize.measure.timing import interleaved_seconds
from optimize.passes.tile_data import LayerFigures, Speed
from optimize.passes.tile_search import PREDICTION, stand_ins

REPEATS = 3


def layer_figures(
    run: Replay, sites: Sequence[Site], grid: FrameGrid, errors: Sequence[float]
) -> list[LayerFigures]:
    """Error and map of each site, the maps at the inputs of a run, which goes on to the last site.

    Tokens that do not stand frame after frame have no map.
    """
    if not grid.frame_major:
        return [LayerFigures(error) for error in errors]
    figures = []
    for site, error in zip(sites, errors, strict=True):
        run.advance(site.node)
        query, key, _ = site.inputs
        tiles, text_share = frame_attention(
            run.value(query),
            run.value(key),
            frames=grid.frames,
            tokens_per_frame=grid.tokens_per_frame,
            prefix=site.prefix,
            suffix=site.suffix,
            mask=None if site.mask is None else run.value(site.mask),
            scale=site.scale,
        )
        figures.append(LayerFigures(error, tiles.tolist(), text_share))
    return figures


def speed(
    start: Callable[[], Replay], sites: Sequence[Site], grid: FrameGrid, counts: Sequence[int]
) -> Speed:
    """One call of the denoiser, dense and tiled, and the attention alone, timed interleaved.

    Args:
        start: begins a run of the denoiser.
        sites: self-attention sites, in graph order.
        grid: their frames.
        counts: reference frames of each site.
    """
    instead = stand_ins(sites, grid, counts)
    run = start()
    whole = _medians(lambda: run.output(PREDICTION), lambda: run.output(PREDICTION, instead))
    dense = tiled = 0.0
    for site in sites:
        if site.node in instead:
            run.advance(site.node)
            of_site = _site_medians(run, site, instead[site.node])
            dense, tiled = dense + of_site[0], tiled + of_site[1]
    share = min(1.0, dense / whole[0])
    return Speed(share, predicted_speedup(share, dense / tiled), whole[0] / whole[1])


def _site_medians(run: Replay, site: Site, compute: Compute) -> tuple[float, float]:
    args, kwargs = run.arguments(site.node)
    return _medians(lambda: SDPA(*args, **kwargs), lambda: compute(*args, **kwargs))


def _medians(dense: Callable[[], object], tiled: Callable[[], object]) -> tuple[float, float]:
    seconds = interleaved_seconds({"dense": dense, "tiled": tiled}, REPEATS)
    return statistics.median(seconds["dense"]), statistics.median(seconds["tiled"])

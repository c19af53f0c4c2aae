"""Chooses the reference frames of each layer so that the prediction stays within an error budget.

Each layer is tried alone with each candidate, all others dense; errors are of the prediction.
What a layer saves against the error it costs gives an order in which layers are made sparser, as
for a knapsack whose errors add. Errors only add while they are small, so each choice of that order
is measured with all its layers together, and the search ends before the first that is over the
budget. A larger budget goes further in the same order: no layer ever gets denser by it.

Source: Ding et al. (2025), Efficient-vDiT, algorithm 1, with a normalised loss and a joint recheck.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import fx

from optimize.ir.attention_sites import Site
from optimize.ir.frame_axis import FrameGrid
from optimize.ir.replay import Compute, Replay
from optimize.kernels.tile_attention.pattern import spread_references, tile_density
from optimize.passes.tile_node import apply, tiled

PREDICTION = "prediction"

Choice = tuple[int, ...]
"""The number of reference frames of each site; all frames mean dense."""


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        choice: reference frames per site.
        error: of the prediction with all of them, relative squared.
        alone: per site, candidate → error with that site alone.
    """

    choice: Choice
    error: float
    alone: tuple[dict[int, float], ...]


def default_candidates(frames: int) -> Choice:
    """Numbers of reference frames worth trying: the paper's {1, 2, 3, 4} of 8, {3, …, 12} of 24."""
    counts = {-(-frames // divisor) for divisor in (8, 6, 4, 3, 2)}
    return tuple(sorted(count for count in counts if tile_density(frames, count) < 1))


def search(
    start: Sequence[Callable[[], Replay]],
    sites: Sequence[Site],
    grid: FrameGrid,
    candidates: Sequence[int],
    budget: float,
) -> Search:
    """The sparsest choice that the order of savings reaches within the budget.

    Args:
        start: begins a run of the denoiser, one per moment to compare predictions at.
        sites: self-attention sites, in graph order.
        grid: their frames.
        candidates: numbers of reference frames, ascending.
        budget: largest mean over the moments of ||prediction - dense||² / ||dense||².
    """
    dense = tuple(grid.frames for _ in sites)
    if budget <= 0 or not candidates:
        return Search(dense, 0.0, ())
    # Runs halted at the first site: what comes before is the same for every choice.
    runs: list[tuple[Replay, torch.Tensor]] = []
    for make in start:
        run = make()
        run.advance(sites[0].node)
        runs.append((run, run.output(PREDICTION)))
    alone = _errors_alone(start, [exact for _, exact in runs], sites, grid, candidates)
    found, error = dense, 0.0
    for choice in choices(alone, grid.frames):
        instead = stand_ins(sites, grid, choice)
        joint = _mean([_error(run.output(PREDICTION, instead), exact) for run, exact in runs])
        if joint > budget:
            break
        found, error = choice, joint
    return Search(found, error, alone)


def stand_ins(
    sites: Sequence[Site], grid: FrameGrid, counts: Sequence[int]
) -> dict[fx.Node, Compute]:
    """What computes each site with its number of reference frames; dense ones stay as they are."""
    return {
        site.node: tiled(
            apply,
            site,
            grid,
            spread_references(grid.frames, count),
            site.node.meta["val"].device,
        )
        for site, count in zip(sites, counts, strict=True)
        if count < grid.frames
    }


def choices(alone: Sequence[Mapping[int, float]], frames: int) -> list[Choice]:
    """Choices from nearly dense to the sparsest, each with one layer sparser than the one before.

    Args:
        alone: per site, candidate → error with that site alone.
        frames: of the video.
    """
    steps = []
    for place, errors in enumerate(alone):
        corners = _corners(errors, frames)
        steps += [
            (_slope(corner, following), place, following.count)
            for corner, following in pairwise(corners)
        ]
    chosen = [frames] * len(alone)
    result = []
    # Within a site slopes grow, so sorting keeps its steps in order.
    for _, place, count in sorted(steps):
        chosen[place] = count
        result.append(tuple(chosen))
    return result


@dataclass(frozen=True)
class _Corner:
    """Reference frames of a site, the share of its tiles they save, and the error they cost."""

    saved: float
    error: float
    count: int


def _corners(errors: Mapping[int, float], frames: int) -> list[_Corner]:
    """The lower convex hull of a site's candidates, from dense on: none pays less than the next."""
    corners = [_Corner(0.0, 0.0, frames)]
    for count in sorted(errors, reverse=True):
        corner = _Corner(1 - tile_density(frames, count), errors[count], count)
        while len(corners) > 1 and _slope(corners[-2], corner) <= _slope(*corners[-2:]):
            corners.pop()
        corners.append(corner)
    return corners


def _slope(first: _Corner, second: _Corner) -> float:
    """The error that a further share of saved tiles costs."""
    return (second.error - first.error) / (second.saved - first.saved)


def _errors_alone(
    start: Sequence[Callable[[], Replay]],
    dense: Sequence[torch.Tensor],
    sites: Sequence[Site],
    grid: FrameGrid,
    candidates: Sequence[int],
) -> tuple[dict[int, float], ...]:
    found: list[dict[int, list[float]]] = [{count: [] for count in candidates} for _ in sites]
    for make, reference in zip(start, dense, strict=True):
        run = make()
        for site, errors in zip(sites, found, strict=True):
            run.advance(site.node)
            for count in candidates:
                instead = stand_ins([site], grid, [count])
                errors[count].append(_error(run.output(PREDICTION, instead), reference))
    return tuple({count: _mean(each) for count, each in errors.items()} for errors in found)


def _error(prediction: torch.Tensor, dense: torch.Tensor) -> float:
    """Relative squared error, in float64."""
    reference = dense.double()
    difference = prediction.double() - reference
    return float(difference.square().sum() / reference.square().sum())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

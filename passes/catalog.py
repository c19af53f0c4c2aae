"""Every pass, and the rules of their order: adding a pass is a file and a line here.

A test walks the folder and names any pass that is missing from the list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optimize.passes.attach_draft import AttachDraft
from optimize.passes.cache_regions import CacheRegions
from optimize.passes.commit_early import CommitEarly
from optimize.passes.energy_resample import EnergyResample
from optimize.passes.first_hitting import FirstHitting
from optimize.passes.fuse_solver import FuseSolver
from optimize.passes.lower_precision import LowerPrecision
from optimize.passes.pass_base import Pass
from optimize.passes.prune_visual_tokens import PruneVisualTokens
from optimize.passes.shard_sequence import ShardSequence
from optimize.passes.tile_attention import TileAttention

PASSES: tuple[type[Pass], ...] = (
    CacheRegions,
    TileAttention,
    PruneVisualTokens,
    AttachDraft,
    FirstHitting,
    CommitEarly,
    EnergyResample,
    ShardSequence,
    FuseSolver,
    LowerPrecision,
)


@dataclass(frozen=True)
class OrderRule:
    """`first` cannot come after `then`, because of `reason`."""

    first: str
    then: str
    reason: str


ORDER: tuple[OrderRule, ...] = (
    OrderRule(
        "prune_visual_tokens",
        "attach_draft",
        "attach_draft puts rounds in the place of the decode graph, whose caches pruning shortens",
    ),
    OrderRule(
        "cache_regions",
        "fuse_solver",
        "fuse_solver merges the denoiser into the step graph, where it cannot be rewritten alone",
    ),
    OrderRule(
        "tile_attention",
        "fuse_solver",
        "its search compares predictions of the denoiser, which a fused step no longer returns",
    ),
    OrderRule(
        "cache_regions",
        "tile_attention",
        "a subset of the tokens is of all frames, so the graphs made for it keep whole attention",
    ),
    OrderRule(
        "tile_attention",
        "shard_sequence",
        "its search compares predictions of the whole denoiser, which no process has any more",
    ),
    OrderRule(
        "shard_sequence",
        "fuse_solver",
        "fuse_solver merges the denoiser into the step graph, where it cannot be rewritten alone",
    ),
    OrderRule(
        "first_hitting",
        "energy_resample",
        "energy_resample draws whole texts in the order that first_hitting chooses",
    ),
    *(
        OrderRule(
            name,
            "lower_precision",
            "the other passes read graphs in the dtype they were traced in; rounding comes last",
        )
        for name in (
            "cache_regions",
            "tile_attention",
            "prune_visual_tokens",
            "attach_draft",
            "first_hitting",
            "commit_early",
            "energy_resample",
            "shard_sequence",
            "fuse_solver",
        )
    ),
    OrderRule(
        "cache_regions",
        "shard_sequence",
        "the rows of a sharded denoiser lie in several processes; use one of the two",
    ),
)


def passes_by_name() -> Mapping[str, type[Pass]]:
    """Name → pass class."""
    return {item.name: item for item in PASSES}


def latest_position(name: str, names: Sequence[str]) -> int:
    """The last place where a pass can stand among others."""
    later = {rule.then for rule in ORDER if rule.first == name}
    return next((index for index, other in enumerate(names) if other in later), len(names))


def order_problem(names: Sequence[str], position: int) -> str | None:
    """Why the pass at `position` cannot stand there, after those before it; None if it can."""
    name = names[position]
    if name in names[:position]:
        return f"found {name} a second time, expected it once; join the options in one entry"
    for rule in ORDER:
        if rule.first == name and rule.then in names[:position]:
            return f"found {name} after {rule.then}, expected it before: {rule.reason}"
    return None

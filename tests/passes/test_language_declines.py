"""Passes for denoisers say of a language model that it is none; pruning says it of a denoiser."""

import pytest

from optimize.ir.errors import PassDeclined
from optimize.passes.cache_regions import CacheRegions
from optimize.passes.fuse_solver import FuseSolver
from optimize.passes.pass_base import Pass
from optimize.passes.pipeline import Entry, run_passes
from optimize.passes.prune_visual_tokens import PruneVisualTokens
from optimize.passes.shard_sequence import ShardSequence
from optimize.passes.tile_attention import TileAttention
from tests.passes.tiny_llava import llama_program
from tests.passes.tiny_video import tiny_video

OTHERS: list[Pass] = [
    CacheRegions(),
    TileAttention(),
    FuseSolver(),
    FuseSolver(solver="same"),
    ShardSequence(2),
]


@pytest.mark.parametrize("item", OTHERS, ids=lambda item: item.name)
def test_a_language_model_is_no_denoiser(item: Pass) -> None:
    reason = "the program generates tokens, expected one that denoises"
    with pytest.raises(PassDeclined, match=f"{item.name}: {reason}; remove it from the recipe"):
        run_passes(llama_program(), [item], verify=False)
    after = run_passes(llama_program(), [Entry(item, optional=True)], verify=False)
    assert after.history[0].declined == reason


def test_pruning_declines_denoisers_and_text() -> None:
    with pytest.raises(PassDeclined, match="the program does not generate tokens"):
        run_passes(tiny_video(), [PruneVisualTokens()], verify=False)
    with pytest.raises(PassDeclined, match="the prompts have no image"):
        run_passes(llama_program(), [PruneVisualTokens()], verify=False)

"""Checks tiled attention on real inputs against attention with the mask written out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.ir.replay import Replay
from optimize.kernels.tile_attention.pattern import TilePattern
from optimize.kernels.tile_attention.reference import allowed_pairs
from optimize.passes.pass_base import OracleResult

TILES = torch.ops.optimize.tile_attention.default
ROWS = 64
"""Rows compared; each costs the scores of one query with all keys."""

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference, as a share of the largest value: the dtype's roundings over a long sum."""


def tile_nodes(graph: Graph) -> list[fx.Node]:
    """The tiled attention nodes of a graph, in order."""
    return [node for node in graph.graph.nodes if node.target is TILES]


def sampled_rows_error(program: Program, inputs: Mapping[str, torch.Tensor]) -> list[OracleResult]:
    """The first tiled site at some rows of text, of references and of other frames."""
    graph = program.graphs["denoiser"]
    node = tile_nodes(graph)[0]
    run = Replay(graph, program.weights, inputs)
    run.advance(node)
    arguments: Any = run.arguments(node)[0]
    query, key, value, frames, tokens, references, prefix, suffix, mask, scale = arguments
    pattern = TilePattern(frames, tokens, tuple(references), prefix, suffix)
    found = TILES(*arguments)
    rows = torch.linspace(0, pattern.length - 1, min(ROWS, pattern.length)).long()
    rows = rows.to(query.device)
    seen = allowed_pairs(pattern, query.device, rows)
    if mask is not None:
        seen = seen & mask if mask.dtype == torch.bool else mask.where(seen, -torch.inf)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, rows], key, value, attn_mask=seen, scale=scale
    )
    largest = float(expected.abs().max()) or 1.0
    error = float((found[:, :, rows] - expected).abs().max()) / largest
    return [OracleResult("tiles_equal_masked_attention", error, BOUNDS[query.dtype])]

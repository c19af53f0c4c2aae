"""Shares the tokens out among processes: each runs the denoiser on its part of the sequence.

    tokens [B, S, C]                 tokens [B, S/W, C]            in each of W processes
    q, k, v [B, N, S, D]             q, k, v [B, N, S/W, D]
    out = sdpa(q, k, v)      ───▶    q, k, v [B, N/W, S, D]        after an all-to-all
                                     out = sdpa(q, k, v)           all tokens, a share of the heads
                                     out [B, N, S/W, D]            after an all-to-all
    prediction [B, …]                prediction [B, …]             after an all-gather

The collectives are nodes of the graph. The loop is the same in every process: noise depends on the
seed alone, so the latents stay equal, and only the network is shared out. Text of joint attention
is computed by every process, its attention by heads.

Changes: the denoiser graph; weights, loop and tables stay.
Declines when: the program generates tokens; there is no process group of this size; the loop is
    already fused or caches regions; the graph has no self-attention over tokens of the latent;
    their number is not fixed, or the processes do not divide it; they do not divide the heads
    (exchange "heads"); an attention op needs the queries of all tokens (exchange "keys").
Numerics: rounding; products of matrices are the same with fewer rows.
Source: Jacobs et al. (2023), DeepSpeed Ulysses; Ding et al. (2025), Efficient-vDiT, on sequence
    parallelism with tile masks, which are per token and so the same for every head.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

import torch

from optimize.ir.axes import Axes, Axis
from optimize.ir.axis_rules import infer_axes
from optimize.ir.builder import builder_with_inputs
from optimize.ir.collectives import Share, share_of_group
from optimize.ir.graph import Graph
from optimize.ir.program import Program, denoising_repeat
from optimize.ir.row_shard import Exchange, RowShard
from optimize.ir.token_axis import CannotSubset, token_axis, token_count
from optimize.measure.cost import graph_bytes_sent, graph_flops
from optimize.passes.pass_base import Declined, OracleResult, Pass, Rewritten
from optimize.runtime.loop import Call

MAX_PROCESSES = 1024
SHARD_BOUND = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest relative difference of one prediction; half precision allows 5e-2."""


@dataclass(frozen=True)
class ShardSequence(Pass):
    """Options of `shard_sequence`.

    Args:
        processes: how many share the tokens, in [1, 1024]; as many as `torchrun` started.
        exchange: what is exchanged at self-attention. "heads" sends each token once, and needs
            heads that `processes` divides; "keys" sends all keys and values to everyone.
    """

    processes: int = 2
    exchange: Exchange = "heads"

    numerics: ClassVar[Literal["exact", "rounding", "approximate"]] = "rounding"

    def __post_init__(self) -> None:
        if not 1 <= self.processes <= MAX_PROCESSES:
            raise ValueError(
                f"processes: found {self.processes}, expected a number in [1, {MAX_PROCESSES}]"
            )
        if self.exchange not in get_args(Exchange):
            raise ValueError(f"exchange: found {self.exchange!r}, expected 'heads' or 'keys'")

    def identity(self) -> Self:
        return replace(self, processes=1)

    def declines(self, program: Program) -> str | None:
        if program.generates_tokens:
            return "the program generates tokens, expected one that denoises"
        if "denoiser" not in program.graphs or "solver" not in program.graphs:
            return "the loop is already fused; list shard_sequence before fuse_solver"
        if program.plan is not None:
            return (
                "the loop caches regions, whose rows differ from step to step; use one of the two"
            )
        share = share_of_group(self.processes)
        if isinstance(share, str):
            return share
        try:
            tokens = token_count(program.graphs["denoiser"])
        except CannotSubset as reason:
            return str(reason)
        if tokens % self.processes:
            return (
                f"found {tokens} tokens, expected a multiple of {self.processes} processes; "
                "use as many processes as divide it"
            )
        return None

    def rewrite(self, program: Program) -> Rewritten:
        share = share_of_group(self.processes)
        if isinstance(share, str):
            raise Declined(share)
        graph = program.graphs["denoiser"]
        axes = infer_axes(graph)
        tokens = token_axis(graph, axes)
        try:
            sharded, sites = self._sharded(graph, axes, tokens, share)
        except CannotSubset as reason:
            raise Declined(str(reason)) from reason
        return Rewritten(
            replace(program, graphs={**program.graphs, "denoiser": sharded}),
            sites,
            {
                "rank": share.rank,
                "tokens": tokens.hint,
                "tokens_per_process": tokens.hint // share.processes,
                "per_process": per_process(graph, sharded, share.processes),
            },
        )

    def oracles(
        self, before: Program, after: Program, request: Mapping[str, Any]
    ) -> list[OracleResult]:
        """One prediction of all processes together equals that of the whole graph."""
        run = before.prepared(request, seed=0)
        denoise = denoising_repeat(before).bodies["step"][0]
        assert isinstance(denoise, Call)
        run.begin()
        inputs = run.inputs(denoise, 0)
        whole = before.graphs["denoiser"].run(before.weights, inputs)["prediction"]
        shared = after.graphs["denoiser"].run(after.weights, inputs)["prediction"]
        scale = float(whole.abs().max()) or 1.0
        error = float((shared - whole).abs().max()) / scale
        bound = SHARD_BOUND.get(whole.dtype, 5e-2)
        return [OracleResult("shared_equals_whole", error, bound)]

    def _sharded(
        self, graph: Graph, axes: Axes, tokens: Axis, share: Share
    ) -> tuple[Graph, tuple[str, ...]]:
        """The denoiser of this process, and its self-attention sites."""
        builder, arguments = builder_with_inputs(graph)
        shard = RowShard(graph, axes, tokens, builder, arguments, share, self.exchange)
        outputs = shard.copy_all()
        return builder.finish(outputs, graph.dimensions), tuple(site.name for site in shard.sites)


def per_process(whole: Graph, sharded: Graph, processes: int) -> list[dict[str, float]]:
    """What one process does per step, with one process and with all: rows of a table.

    Each row has `processes`, `flops_per_step`, `bytes_sent_per_step`, and `flop_scaling`, the share
    of ideal: FLOPs of one process alone / (processes * FLOPs of each).
    """
    alone = graph_flops(whole)
    rows = []
    for count, graph in ((1, whole), (processes, sharded)):
        each = graph_flops(graph)
        rows.append(
            {
                "processes": count,
                "flops_per_step": each,
                "bytes_sent_per_step": graph_bytes_sent(graph),
                "flop_scaling": alone / (count * each) if each else 1.0,
            }
        )
    return rows

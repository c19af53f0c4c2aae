"""What a draft is to the pass that attaches it: graphs that propose tokens, once per round.

The graph "draft" gets what the last round emitted and proposes a tree of tokens behind it:

    run [B, R], emitted [B]    the tokens of the last round and how many of them count
    drafted [B, n]             the tokens of rows 1 … n of the tree
    draft_probabilities        [B, P, V] float64, what the children of each of the P rows that have
                               some were drawn from; where tokens are drawn only

Everything else, such as caches of its own, is between its graphs; "draft_prefill", where there is
one, gets the prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import fx

from optimize.ir.builder import Builder
from optimize.ir.decode import Sampling
from optimize.ir.draft_tree import DraftTree
from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.passes.verifiers.verifier_base import Verifier

Size = int | torch.SymInt


@dataclass(frozen=True)
class Round:
    """What is proposed and how it is judged, the same in every round.

    Attributes:
        tree: the shape of what is drafted.
        verifier: what decides which tokens stay.
        sampling: how tokens are drawn; None takes the likeliest.
        capacity: rows of a cache that holds a whole text and a tree behind it.
    """

    tree: DraftTree
    verifier: Verifier
    sampling: Sampling | None
    capacity: int

    @property
    def run(self) -> int:
        """R, the most tokens that a round emits."""
        return self.tree.depth + 1

    @cached_property
    def parents(self) -> tuple[tuple[int, ...], ...]:
        """The rows with children, level by level."""
        return tuple(
            tuple(row for row in level if self.tree.children[row])
            for level in self.tree.levels[:-1]
        )


@dataclass(frozen=True)
class DraftGraphs:
    """What a draft adds to a program.

    Attributes:
        draft: the graph of a round.
        before: the graph "draft_prefill"; None for none.
        prefill: instead of the target's own; None keeps that.
        weights: of these graphs, besides the target's.
        reads_states: whether the graph of a round takes `states` [B, R, H], the target's hidden
            states at the verified rows.
        details: for the report.
    """

    draft: Graph
    before: Graph | None = None
    prefill: Graph | None = None
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    reads_states: bool = False
    details: Mapping[str, object] = field(default_factory=dict)


class Draft(Protocol):
    """Proposes tokens."""

    def declines(self, program: Program) -> str | None:
        """Why it cannot draft for a program, or None."""
        ...

    def graphs(self, program: Program, plan: Round) -> DraftGraphs:
        """Its graphs."""
        ...


class Constants:
    """Tables that a graph reads as weights."""

    def __init__(self, builder: Builder, prefix: str) -> None:
        self.builder, self.prefix = builder, prefix
        self.weights: dict[str, torch.Tensor] = {}

    def node(self, name: str, table: torch.Tensor) -> fx.Node:
        """The node of a table; the same one for the same name."""
        full = self.prefix + name
        self.weights[full] = table
        return self.builder.weight(full, self.builder.fake(table.shape, table.dtype))


def sampling_inputs(
    builder: Builder, plan: Round, batch: Size, uniforms: str, count: int
) -> dict[str, fx.Node]:
    """The inputs of a graph that draws tokens: random numbers, temperature, perhaps top_p."""
    if plan.sampling is None:
        return {}
    inputs = {uniforms: builder.input(uniforms, builder.fake((batch, count), torch.float64))}
    names = ("temperature",) if plan.sampling.top_p is None else ("temperature", "top_p")
    for name in names:
        inputs[name] = builder.input(name, builder.fake((), torch.float32))
    return inputs


def round_inputs(builder: Builder, plan: Round, batch: Size) -> dict[str, fx.Node]:
    """The inputs that every graph of a draft has: `run` and `emitted`."""
    run = builder.input("run", builder.fake((batch, plan.run), torch.int64))
    return {"run": run, "emitted": builder.input("emitted", builder.fake((batch,), torch.int64))}

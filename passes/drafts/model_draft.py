"""Drafts with a decoder: a smaller model of the same vocabulary, or some of the target's layers.

    draft_prefill    the prompt ─▶ the draft's caches
    draft            run ─▶ caches; logits behind its last token ─▶ level 1
                     level 1 ─▶ level 2 ─▶ …      what is tried sees the cache and its ancestors

The caches hold what is certain only. Rows that are tried are never written, so nothing is undone
when they are rejected.

Source: Leviathan et al. (2023), Fast Inference from Transformers via Speculative Decoding.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import fx

from optimize.ir.builder import Builder, fake_mode_of
from optimize.ir.decoder_rows import decoder_rows
from optimize.ir.graph import Graph, shape
from optimize.ir.key_value_slots import padded
from optimize.ir.program import Program
from optimize.ir.recording import record
from optimize.ir.token_axis import SDPA
from optimize.kernels.gather_rows import gather_rows
from optimize.kernels.tree_attention import schema as _tree  # noqa: F401  registers the op
from optimize.passes.drafts.draft_base import (
    Constants,
    DraftGraphs,
    Round,
    round_inputs,
    sampling_inputs,
)
from optimize.passes.drafts.growing import grown

CACHED = torch.ops.optimize.cached_attention.default
TREE = torch.ops.optimize.tree_attention.default


@dataclass(frozen=True)
class ModelDraft:
    """A decoder that drafts.

    Args:
        decoder: as of `Program.decoder`, its weights named as in `weights` or in the target.
        weights: those that the target does not have.
        position_shift: position of a token less its row.
        details: for the report.
    """

    decoder: Graph
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    position_shift: int = 0
    details: Mapping[str, object] = field(default_factory=dict)

    def declines(self, program: Program) -> str | None:
        return None

    def graphs(self, program: Program, plan: Round) -> DraftGraphs:
        draft, constants = self._round(plan)
        return DraftGraphs(
            draft=draft,
            before=self._prefill(plan),
            weights={**self.weights, **constants},
            details=self.details,
        )

    def _prefill(self, plan: Round) -> Graph:
        """Fills the caches with the text of a prompt."""
        builder = Builder(fake_mode_of(self.decoder))
        ids = self.decoder.node("input_ids").meta["val"]
        tokens = builder.input("input_ids", ids)
        lengths = builder.input("lengths", builder.fake((ids.shape[0],), torch.int64))
        shift = self.position_shift
        positions = record(builder, lambda ids: _prompt_positions(ids, shift), tokens)
        outputs: dict[str, fx.Node] = {}

        def attend(
            layer: int, query: fx.Node, key: fx.Node, value: fx.Node, scale: float | None
        ) -> fx.Node:
            for name, item in (("key", key), ("value", value)):
                outputs[f"draft_{name}_{layer}"] = padded(builder, item, plan.capacity)
            shared = shape(query)[1] != shape(key)[1]
            return builder.call(
                SDPA, query, key, value, None, 0.0, True, scale=scale, enable_gqa=shared
            )

        decoder_rows(builder, self.decoder, tokens, positions, attend)
        outputs["draft_rows"] = record(builder, _text_rows, tokens, lengths)
        names = {"batch": "batch", "rows": "prompt"}
        dimensions = {names[name]: symbol for name, symbol in self.decoder.dimensions.items()}
        return builder.finish(outputs, dimensions)

    def _round(self, plan: Round) -> tuple[Graph, dict[str, torch.Tensor]]:
        """The graph of a round, and the tables it reads."""
        tree, decoder = plan.tree, self.decoder
        builder = Builder(fake_mode_of(decoder))
        batch = decoder.node("input_ids").meta["val"].shape[0]
        inputs = round_inputs(builder, plan, batch)
        rows = builder.input("draft_rows", builder.fake((batch,), torch.int64))
        sampling = sampling_inputs(builder, plan, batch, "draft_uniforms", tree.size - 1)
        constants = Constants(builder, "draft_tree.")
        outputs: dict[str, fx.Node] = {}

        def write(
            layer: int, query: fx.Node, key: fx.Node, value: fx.Node, scale: float | None
        ) -> fx.Node:
            caches = []
            for name, item in (("key", key), ("value", value)):
                _, groups, _, width = shape(item)
                like = builder.fake((batch, groups, plan.capacity, width), item.meta["val"].dtype)
                caches.append(builder.input(f"draft_{name}_{layer}", like))
            call = builder.call(CACHED, query, key, value, *caches, rows, scale)
            for place, name in enumerate(("key", "value"), 1):
                outputs[f"draft_{name}_{layer}"] = builder.call(operator.getitem, call, place)
            return builder.call(operator.getitem, call, 0)

        def last(hidden: fx.Node) -> fx.Node:
            return cast(fx.Node, record(builder, _last_of_run, hidden, inputs["emitted"]))

        positions = record(builder, self._positions(plan, plan.run), rows)
        _, first = decoder_rows(builder, decoder, inputs["run"], positions, write, last)
        certain = record(builder, torch.add, rows, inputs["emitted"])
        # The rows that were tried so far, and their keys and values by layer.
        tried: list[int] = []
        keys: dict[tuple[str, int], fx.Node] = {}

        def following(level: tuple[int, ...], tokens: fx.Node) -> fx.Node:
            tried.extend(level)
            seen = constants.node(f"sees_{level[0]}", tree.sees()[list(level)][:, tried])

            def attend(
                layer: int, query: fx.Node, key: fx.Node, value: fx.Node, scale: float | None
            ) -> fx.Node:
                for name, item in (("key", key), ("value", value)):
                    old = keys.get((name, layer))
                    both = item if old is None else builder.call(_cat, [old, item], 2)
                    keys[name, layer] = both
                caches = [outputs[f"draft_{name}_{layer}"] for name in ("key", "value")]
                further = [keys[name, layer] for name in ("key", "value")]
                return builder.call(TREE, query, *further, *caches, certain, seen, scale)

            depth = tree.depths[level[0]]
            places = record(builder, self._positions(plan, len(level), depth - 1), certain)
            return decoder_rows(builder, decoder, tokens, places, attend)[1]

        made = grown(builder, plan, first, following, sampling)
        graph = builder.finish(
            {**made, "draft_rows": certain, **outputs}, {"batch": decoder.dimensions["batch"]}
        )
        return graph, constants.weights

    def _positions(
        self, plan: Round, count: int, depth: int | None = None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Positions [B, count] from rows [B]: one after another, or all at one depth."""
        highest, shift = plan.capacity - plan.tree.size - 1, self.position_shift

        def positions(rows: torch.Tensor) -> torch.Tensor:
            steps = torch.arange(count, device=rows.device)
            steps = steps if depth is None else torch.zeros_like(steps) + depth
            return torch.clamp(rows[:, None] + steps, max=highest) + shift

        return positions


_cat = torch.ops.aten.cat.default


def _prompt_positions(tokens: torch.Tensor, shift: int) -> torch.Tensor:
    return (torch.arange(tokens.shape[1], device=tokens.device) + shift).expand(tokens.shape)


def _text_rows(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Rows [B] of the prompts; a length of 0 stands for a prompt without padding."""
    return torch.where(lengths > 0, lengths, tokens.shape[1])


def _last_of_run(hidden: torch.Tensor, emitted: torch.Tensor) -> torch.Tensor:
    """[B, 1, H]: the row of the last token that counts."""
    last = torch.clamp(emitted - 1, min=0)[:, None]
    row: torch.Tensor = gather_rows(hidden, last, 1)
    return row

"""Drafts with a Chimera: the target's hidden states as context, trigrams for what is tried.

    prefill          … ─▶ hidden states of the prompt ─▶ keys and values of the one fusion layer
    draft            states of the rows verified last ─▶ the cache; the root and what is tried are
                     rows of trigrams that see the cache and their ancestors

The target's prefill is built anew from its decoder, because the hidden states of all rows of a
prompt are needed, not only the last.

Source: Zeng et al. (2024), Chimera.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import fx
from torch.func import functional_call

from optimize.capture.decode_steps import Choice
from optimize.ir.builder import Builder, fake_mode_of
from optimize.ir.decoder_rows import decoder_rows, output_layer
from optimize.ir.graph import Graph, shape
from optimize.ir.key_value_slots import padded
from optimize.ir.program import Program
from optimize.ir.recording import record
from optimize.ir.token_axis import SDPA
from optimize.kernels.gather_rows import gather_rows
from optimize.kernels.scatter_rows import scatter_rows
from optimize.kernels.tree_attention import tree_attention
from optimize.passes.drafts.chimera import Chimera
from optimize.passes.drafts.chimera_file import load_chimera
from optimize.passes.drafts.draft_base import (
    Constants,
    DraftGraphs,
    Round,
    round_inputs,
    sampling_inputs,
)
from optimize.passes.drafts.growing import grown

PREFIX = "chimera."

WHOLE_HEAD = 2**20
"""Most elements of a head that is multiplied out: so small a matrix is read faster than three."""


@dataclass(frozen=True)
class TargetTables:
    """The names of a target's embedding table and of its output matrix, both [V, H]."""

    embedding: str
    lm_head: str


def target_tables(decoder: Graph) -> TargetTables | None:
    """Finds the two tables in a decoder; None where a draft cannot share them."""
    product = output_layer(decoder).product
    embeddings = [
        cast(fx.Node, node.args[0])
        for node in decoder.graph.nodes
        if node.target is torch.ops.aten.embedding.default
        and cast(fx.Node, node.args[1]).name == "input_ids"
    ]
    matrix = cast(fx.Node, product.args[1])
    if len(embeddings) != 1 or product.target is not torch.ops.aten.linear.default:
        return None
    if matrix.name not in decoder.weights or embeddings[0].name not in decoder.weights:
        return None
    return TargetTables(decoder.weights[embeddings[0].name], decoder.weights[matrix.name])


@dataclass(frozen=True)
class ChimeraDraft:
    """A trained Chimera.

    Args:
        path: of its weights.
    """

    path: Path

    def declines(self, program: Program) -> str | None:
        assert program.decoder is not None and program.decoding is not None
        if program.decoding.image_tokens:
            return "a Chimera reads the hidden states of text only; these prompts have an image"
        if target_tables(program.decoder) is None:
            return "found no embedding table and output matrix that a Chimera could share"
        try:
            self._load(program)
        except ValueError as error:
            return str(error)
        return None

    def graphs(self, program: Program, plan: Round) -> DraftGraphs:
        assert program.decoder is not None
        tables = target_tables(program.decoder)
        assert tables is not None
        chimera = self._load(program)
        own = {PREFIX + name: value for name, value in chimera.state_dict().items()}
        prefill = _Prefill(program, plan, chimera, tables).graph()
        draft, constants = _round(program, plan, chimera, tables)
        count = sum(value.numel() for value in own.values())
        return DraftGraphs(
            draft=draft,
            prefill=prefill,
            weights={**own, **constants},
            reads_states=True,
            details={"parameters": count, "heads": chimera.config.heads},
        )

    def _load(self, program: Program) -> Chimera:
        assert program.decoder is not None
        tables = target_tables(program.decoder)
        assert tables is not None
        weights = program.weights
        chimera = load_chimera(self.path, weights[tables.embedding], weights[tables.lm_head])
        size = 2 * chimera.config.width * chimera.config.vocabulary
        return chimera.with_whole_heads() if size <= WHOLE_HEAD else chimera


class Pieces:
    """The pieces of a Chimera as nodes of a graph."""

    def __init__(self, builder: Builder, chimera: Chimera, tables: TargetTables) -> None:
        self.builder, self.chimera = builder, chimera
        self.names = {name: PREFIX + name for name in chimera.state_dict()}
        self.names |= {"embedding": tables.embedding, "lm_head": tables.lm_head}
        tensors = {**chimera.state_dict(), "embedding": chimera.embedding}
        tensors["lm_head"] = chimera.lm_head
        self.nodes = {
            name: builder.weight(full, builder.fake(tensors[name].shape, tensors[name].dtype))
            for name, full in self.names.items()
        }

    def __call__(self, piece: str, *arguments: Any) -> Any:
        """What a method of the Chimera returns for nodes."""

        def run(*given: Any) -> Any:
            weights = dict(zip(self.nodes, given, strict=False))
            rest = given[len(self.nodes) :]
            return functional_call(self.chimera, weights, (piece, *rest))

        return record(self.builder, run, *self.nodes.values(), *arguments)


class _Prefill:
    """The target's prefill with the keys and values of its hidden states."""

    def __init__(
        self, program: Program, plan: Round, chimera: Chimera, tables: TargetTables
    ) -> None:
        assert program.decoder is not None and program.decoding is not None
        self.program, self.plan, self.decoder = program, plan, program.decoder
        self.decoding = program.decoding
        self.chimera, self.tables = chimera, tables

    def graph(self) -> Graph:
        """With the inputs and outputs of the target's own, and those of a round's draft."""
        decoder, capacity = self.decoder, self.decoding.capacity
        builder = Builder(fake_mode_of(decoder))
        pieces = Pieces(builder, self.chimera, self.tables)
        old = self.program.graphs["prefill"]
        ids = decoder.node("input_ids").meta["val"]
        inputs = {"input_ids": builder.input("input_ids", ids)}
        for name in old.inputs:
            if name not in inputs:
                like = old.node(name).meta["val"]
                sizes = (ids.shape[0],) if like.dim() else ()
                inputs[name] = builder.input(name, builder.fake(sizes, like.dtype))
        shift = self.decoding.position_shift
        text = record(builder, _text_rows, inputs["input_ids"], inputs["lengths"])
        positions = record(builder, lambda ids: _positions(ids, shift), inputs["input_ids"])
        caches: dict[str, fx.Node] = {}

        def attend(
            layer: int, query: fx.Node, key: fx.Node, value: fx.Node, scale: float | None
        ) -> fx.Node:
            for name, item in (("key", key), ("value", value)):
                caches[f"{name}_{layer}"] = padded(builder, item, capacity)
            shared = shape(query)[1] != shape(key)[1]
            return builder.call(
                SDPA, query, key, value, None, 0.0, True, scale=scale, enable_gqa=shared
            )

        def last(hidden: fx.Node) -> fx.Node:
            return cast(fx.Node, record(builder, _row_before, hidden, text))

        hidden, logits = decoder_rows(
            builder, decoder, inputs["input_ids"], positions, attend, last
        )
        choose = Choice(self.decoding.loop)
        sampling = {name: inputs[name] for name in inputs if name in SAMPLING}
        names = list(sampling)

        def chosen(
            logits: torch.Tensor, most: torch.Tensor, *given: torch.Tensor
        ) -> dict[str, torch.Tensor]:
            token = choose(logits[:, 0], **dict(zip(names, given, strict=True)))
            remaining = most - 1
            finished = choose.stops(token) | (remaining <= 0)
            return {
                "token": token,
                "tokens": token,
                "remaining": remaining,
                "finished": finished,
                "logits": logits[:, 0],
            }

        made = record(builder, chosen, logits, inputs["max_new_tokens"], *sampling.values())
        key, value = pieces("context", hidden, positions)
        for name, item in (("key", key), ("value", value)):
            caches[f"draft_{name}_0"] = padded(builder, item, self.plan.capacity)
        width = self.plan.run
        state = record(builder, lambda h, n: _row_before(h, n).expand(-1, width, -1), hidden, text)
        recent = record(builder, _recent, inputs["input_ids"], text)
        before = record(builder, lambda rows: rows - 1, text)
        outputs = {**made, "rows": text, "states": state, "recent": recent, "draft_rows": before}
        names_of = {"batch": "batch", "rows": "prompt"}
        dimensions = {names_of[name]: symbol for name, symbol in decoder.dimensions.items()}
        return builder.finish({**outputs, **caches}, dimensions)


SAMPLING = ("noise", "temperature", "top_p")


def _round(
    program: Program, plan: Round, chimera: Chimera, tables: TargetTables
) -> tuple[Graph, dict[str, torch.Tensor]]:
    """The graph of a round, and the tables it reads."""
    decoder, decoding, tree = program.decoder, program.decoding, plan.tree
    assert decoder is not None and decoding is not None
    builder = Builder(fake_mode_of(decoder))
    batch = decoder.node("input_ids").meta["val"].shape[0]
    pieces = Pieces(builder, chimera, tables)
    dtype, width = chimera.lm_head.dtype, chimera.config.width
    heads, size = chimera.config.attention_heads, chimera.config.head_size
    inputs = round_inputs(builder, plan, batch)
    rows = builder.input("draft_rows", builder.fake((batch,), torch.int64))
    recent = builder.input("recent", builder.fake((batch, 2), torch.int64))
    states = builder.input("states", builder.fake((batch, plan.run, width), dtype))
    old = [
        builder.input(f"draft_{name}_0", builder.fake((batch, heads, plan.capacity, size), dtype))
        for name in ("key", "value")
    ]
    sampling = sampling_inputs(builder, plan, batch, "draft_uniforms", tree.size - 1)
    constants = Constants(builder, "draft_tree.")
    shift = decoding.position_shift
    verified = record(builder, lambda rows: _after(rows, plan.run), rows)
    fresh = pieces("context", states, record(builder, lambda places: places + shift, verified))
    caches = [
        record(
            builder, lambda cache, at, new: scatter_rows(cache, at, new, 2), cache, verified, new
        )
        for cache, new in zip(old, fresh, strict=True)
    ]
    certain = record(builder, torch.add, rows, inputs["emitted"])
    last = record(builder, _row_before, states, inputs["emitted"])  # [B, 1, H]
    window, newest = record(builder, _window, recent, inputs["run"], inputs["emitted"])
    windows: dict[int, fx.Node] = {0: window}
    tried: list[int] = []
    keys: list[fx.Node] = []

    def logits_of(level: tuple[int, ...]) -> fx.Node:
        depth = tree.depths[level[0]]
        tried.extend(level)
        seen = constants.node(f"sees_{level[0]}", tree.sees()[list(level)][:, tried])
        window = record(builder, lambda *parts: torch.stack(parts, 1), *(windows[r] for r in level))
        trigrams = pieces("trigram", pieces("embed", window))
        places = record(
            builder, lambda rows: (rows + (depth + shift))[:, None].expand(-1, len(level)), certain
        )

        def join(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            return torch.cat([old, new], 2)

        query, key, value = pieces("project", trigrams, places)
        if keys:
            keys[:] = [
                record(builder, join, one, new) for one, new in zip(keys, (key, value), strict=True)
            ]
        else:
            keys[:] = [key, value]
        attended = record(builder, tree_attention, query, *keys, *caches, certain, seen)
        fused = pieces("finish", trigrams, attended)
        state = record(builder, lambda h: h.expand(-1, len(level), -1), last)
        return cast(fx.Node, pieces("logits", state, fused, min(depth, chimera.config.heads - 1)))

    def following(level: tuple[int, ...], tokens: fx.Node) -> fx.Node:
        for place, row in enumerate(level):
            windows[row] = record(
                builder,
                lambda old, new, place=place: _moved_on(old, new, place),
                windows[tree.parents[row - 1]],
                tokens,
            )
        return logits_of(level)

    made = grown(builder, plan, logits_of((0,)), following, sampling)
    outputs = {
        **made,
        "draft_rows": certain,
        "recent": newest,
        "draft_key_0": caches[0],
        "draft_value_0": caches[1],
    }
    graph = builder.finish(outputs, {"batch": decoder.dimensions["batch"]})
    return graph, constants.weights


def _text_rows(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return torch.where(lengths > 0, lengths, tokens.shape[1])


def _positions(tokens: torch.Tensor, shift: int) -> torch.Tensor:
    return (torch.arange(tokens.shape[1], device=tokens.device) + shift).expand(tokens.shape)


def _row_before(rows: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """[B, 1, H]: row count - 1 of each sample."""
    row: torch.Tensor = gather_rows(rows, torch.clamp(count - 1, min=0)[:, None], 1)
    return row


def _recent(tokens: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """[B, 2]: the last two tokens of each prompt; of a prompt of one, that one twice."""
    places = count[:, None] - torch.arange(2, 0, -1, device=tokens.device)
    return tokens.gather(1, torch.clamp(places, min=0))


def _after(rows: torch.Tensor, count: int) -> torch.Tensor:
    """[B, count]: the places from `rows` on."""
    return rows[:, None] + torch.arange(count, device=rows.device)


def _window(
    recent: torch.Tensor, run: torch.Tensor, emitted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The last three tokens [B, 3] once a run is there, and the last two."""
    tokens = torch.cat([recent, run], 1)
    places = emitted[:, None] + torch.arange(-1, 2, device=run.device)
    window = tokens.gather(1, torch.clamp(places, min=0))
    return window, window[:, 1:].clone()


def _moved_on(window: torch.Tensor, tokens: torch.Tensor, place: int) -> torch.Tensor:
    return torch.cat([window[:, 1:], tokens[:, place : place + 1]], 1)

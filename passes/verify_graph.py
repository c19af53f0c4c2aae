"""The graph of a round that runs the target on what was drafted and decides what stays.

    token, drafted ─▶ decoder over the tree ─▶ logits of every row ─▶ verifier ─▶ run, emitted
                                       └─▶ keys and values of every row, behind those of the cache

The rows of a chain lie in the cache as they are kept: the accepted ones are its first. Those of a
tree are moved together by a graph of their own, "settle", which reads a few rows only.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx

from optimize.ir.builder import Builder, builder_with_inputs, fake_mode_of
from optimize.ir.cache_lengths import CACHED
from optimize.ir.decode import Decoding
from optimize.ir.decoder_rows import decoder_rows
from optimize.ir.distribution import distribution
from optimize.ir.graph import Graph, shape
from optimize.ir.key_value_slots import CACHE
from optimize.ir.program import Program
from optimize.ir.recording import record
from optimize.kernels.gather_rows import gather_rows
from optimize.kernels.scatter_rows import scatter_rows
from optimize.passes.drafts.draft_base import Constants, Round, Size, sampling_inputs
from optimize.passes.verifiers.verifier_base import Verdict, table

aten = torch.ops.aten


@dataclass(frozen=True)
class LayerCache:
    """The cache of one layer of the target.

    Attributes:
        shape: [groups, rows, width] of keys; of values with their own width.
        dropped: the slot that counts the rows it does not have; None for all rows.
    """

    key: tuple[int, int, int]
    value: tuple[int, int, int]
    dropped: str | None


@dataclass(frozen=True)
class JudgeWeights:
    """The linear layer [H] and the bias of a judge, whose scores a verifier asks for."""

    weight: torch.Tensor
    bias: float


def layer_caches(decode: Graph) -> tuple[LayerCache, ...]:
    """The caches that a decode graph reads, in the order of its layers."""
    found = []
    for node in decode.graph.nodes:
        if node.target is CACHED:
            key, value = (
                cast(tuple[int, int, int], shape(cast(fx.Node, node.args[place]))[1:])
                for place in (3, 4)
            )
            lengths = cast(fx.Node, node.args[5])
            dropped = None
            if lengths.op != "placeholder":
                dropped = cast(fx.Node, lengths.args[1]).name
            found.append(LayerCache(key, value, dropped))
    return tuple(found)


def verify_graph(
    program: Program, plan: Round, with_states: bool, judge: JudgeWeights | None = None
) -> tuple[Graph, dict[str, torch.Tensor]]:
    """The graph, and the weights that it adds.

    Args:
        program: captured, not yet changed by this pass.
        with_states: whether it returns `states` [B, R, H], the hidden states of the rows that the
            emitted tokens follow.
    """
    decoder, decoding = program.decoder, program.decoding
    assert decoder is not None and decoding is not None
    caches = layer_caches(program.graphs["decode"])
    tree, verifier = plan.tree, plan.verifier
    builder = Builder(fake_mode_of(decoder))
    batch = decoder.node("input_ids").meta["val"].shape[0]
    constants = Constants(builder, "verify_tree.")

    def integers(name: str, *sizes: Size) -> fx.Node:
        return builder.input(name, builder.fake((batch, *sizes), torch.int64))

    token, drafted = integers("token"), integers("drafted", tree.size - 1)
    rows, remaining = integers("rows"), integers("remaining")
    finished = builder.input("finished", builder.fake((batch,), torch.bool))
    count = verifier.uniform_count(tree)
    sampling = sampling_inputs(builder, plan, batch, "uniforms", count)
    if verifier.needs_draft:
        sizes = (batch, sum(map(len, plan.parents)), decoding.vocabulary)
        sampling["draft_probabilities"] = builder.input(
            "draft_probabilities", builder.fake(sizes, torch.float64)
        )
    lengths: dict[str | None, fx.Node] = {None: rows}
    for cache in caches:
        if cache.dropped not in lengths:
            absent = integers(str(cache.dropped))
            lengths[cache.dropped] = builder.call(aten.sub.Tensor, rows, absent)
    sees = None if tree.drafts == 1 else constants.node("sees", tree.sees())
    outputs: dict[str, fx.Node] = {}

    def attend(
        layer: int, query: fx.Node, key: fx.Node, value: fx.Node, scale: float | None
    ) -> fx.Node:
        cache = caches[layer]
        dtype = key.meta["val"].dtype
        given = [
            builder.input(f"{name}_{layer}", builder.fake((batch, *longer(sizes, plan)), dtype))
            for name, sizes in (("key", cache.key), ("value", cache.value))
        ]
        call = builder.call(CACHED, query, key, value, *given, lengths[cache.dropped], scale, sees)
        for place, name in enumerate(("key", "value"), 1):
            outputs[f"{name}_{layer}"] = builder.call(operator.getitem, call, place)
        return builder.call(operator.getitem, call, 0)

    tokens = record(builder, lambda one, more: torch.cat([one[:, None], more], 1), token, drafted)
    depths = constants.node("depths", torch.tensor(tree.depths))
    positions = record(builder, _positions(decoding), rows, depths)
    hidden, logits = decoder_rows(builder, decoder, tokens, positions, attend)
    scores = None
    if judge is not None:
        weight = constants.node("judge", judge.weight.to(hidden.meta["val"].dtype))
        scores = record(builder, lambda h, w: (h * w).sum(-1) + judge.bias, hidden, weight)
    names = list(sampling)
    verdict = record(
        builder,
        lambda t, z, s, *given: _verdict(plan, t, z, s, dict(zip(names, given, strict=True))),
        tokens,
        logits,
        scores,
        *sampling.values(),
    )
    settled = record(builder, _settled(decoding), tokens, *verdict, rows, remaining, finished)
    outputs = {**settled, **outputs}
    if with_states:
        outputs["states"] = record(builder, _kept_states, hidden, verdict.path)
    if tree.drafts != 1:
        outputs["path"] = record(builder, torch.clone, verdict.path)
    graph = builder.finish(outputs, {"batch": decoder.dimensions["batch"]})
    return graph, constants.weights


def settle_graph(verify: Graph) -> Graph:
    """Moves the rows of the accepted path of a tree together, layer by layer."""
    builder = Builder(fake_mode_of(verify))
    made = verify.output_nodes()
    path, rows, emitted = (
        builder.input(name, made[name].meta["val"]) for name in ("path", "rows", "emitted")
    )
    root = record(builder, torch.sub, rows, emitted)
    dropped: dict[str | None, fx.Node] = {None: root}
    outputs = {}
    lengths = _lengths_by_layer(verify)
    for name, node in made.items():
        found = CACHE.fullmatch(name)
        if found is None:
            continue
        absent = lengths[int(found[2])]
        if absent not in dropped:
            given = builder.input(str(absent), verify.node(str(absent)).meta["val"])
            dropped[absent] = record(builder, torch.sub, root, given)
        cache = builder.input(name, node.meta["val"])
        outputs[name] = record(builder, _moved, cache, dropped[absent], path)
    return builder.finish(outputs, verify.dimensions)


def _lengths_by_layer(verify: Graph) -> list[str | None]:
    return [cache.dropped for cache in layer_caches(verify)]


def longer(sizes: Sequence[int], plan: Round) -> tuple[int, int, int]:
    """[groups, rows, width] of a cache with room for a tree behind the longest text."""
    groups, rows, width = sizes
    return groups, rows + plan.tree.size, width


def with_rounds(prefill: Graph, plan: Round, pad_token: int) -> Graph:
    """A prefill graph whose caches have room for a tree, and whose token is a run of one."""
    builder, inputs = builder_with_inputs(prefill)
    made = builder.inline(prefill, inputs)
    outputs: dict[str, fx.Node] = {}
    for name, node in made.items():
        if CACHE.fullmatch(name) and not name.startswith("draft_"):
            outputs[name] = record(builder, lambda rows: _with_room(rows, plan.tree.size), node)
        elif name != "tokens":
            outputs[name] = node
    run = record(builder, lambda token: _run_of_one(token, plan.run, pad_token), made["token"])
    outputs["run"], outputs["emitted"] = run
    outputs["tokens"] = outputs["run"]
    return builder.finish(outputs, prefill.dimensions)


def _run_of_one(
    token: torch.Tensor, count: int, pad_token: int
) -> tuple[torch.Tensor, torch.Tensor]:
    places = torch.arange(count, device=token.device)
    return torch.where(places == 0, token[:, None], pad_token), torch.ones_like(token)


def _with_room(rows: torch.Tensor, count: int) -> torch.Tensor:
    room = rows[:, :, :1].new_zeros(()).expand(rows.shape[0], rows.shape[1], count, rows.shape[3])
    return torch.cat([rows, room], 2)


def _positions(decoding: Decoding) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def positions(rows: torch.Tensor, depths: torch.Tensor) -> torch.Tensor:
        # Rows behind the last one a text can have are never accepted; any position will do.
        last = decoding.capacity - 1
        return torch.clamp(rows[:, None] + depths, max=last) + decoding.position_shift

    return positions


def _verdict(
    plan: Round,
    tokens: torch.Tensor,
    logits: torch.Tensor,
    scores: torch.Tensor | None,
    given: dict[str, torch.Tensor],
) -> Verdict:
    sampling = plan.sampling

    def row(at: torch.Tensor) -> torch.Tensor:
        return _row_of(logits, at)

    def target(at: torch.Tensor) -> torch.Tensor:
        if sampling is None:
            return row(at)
        return distribution(row(at), given["temperature"], given.get("top_p"), sampling.top_k)

    parents = [item for level in plan.parents for item in level]
    places = [parents.index(item) if item in parents else 0 for item in range(plan.tree.size)]

    def draft(at: torch.Tensor) -> torch.Tensor:
        place = table(places, at).index_select(0, at)
        return _row_of(given["draft_probabilities"], place)

    verifier = plan.verifier
    uniforms = given.get("uniforms")
    own = draft if verifier.needs_draft else None
    return verifier.verify(plan.tree, tokens, target, own, uniforms, scores)


def _settled(decoding: Decoding) -> Callable[..., dict[str, torch.Tensor]]:
    """What a verdict means for the text of each sample."""
    pad, stops = decoding.loop.pad_token or 0, decoding.loop.stop_tokens or ()

    def settled(
        tokens: torch.Tensor,
        path: torch.Tensor,
        accepted: torch.Tensor,
        following: torch.Tensor,
        rows: torch.Tensor,
        remaining: torch.Tensor,
        finished: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        depth = path.shape[1]
        places = torch.arange(depth + 1, device=tokens.device)
        kept = torch.cat([tokens.gather(1, path), following[:, None]], 1)
        run = torch.where(places < accepted[:, None], kept, following[:, None])
        emitted = accepted + 1
        ends = torch.zeros_like(run, dtype=torch.bool)
        for stop in stops:
            ends = ends | (run == stop)
        # A text ends with its first stop token, also within what was accepted.
        first = torch.where(ends, places, depth + 1).amin(1) + 1
        emitted = torch.minimum(torch.minimum(emitted, first), remaining)
        emitted = torch.where(finished, 0, emitted)
        run = torch.where(places < emitted[:, None], run, pad)
        left = remaining - emitted
        over = finished | (first <= emitted) | (left <= 0)
        last = run.gather(1, torch.clamp(emitted - 1, min=0)[:, None])[:, 0]
        return {
            "token": last,
            "run": run,
            "tokens": run,
            "emitted": emitted,
            "rows": rows + emitted,
            "remaining": left,
            "finished": over,
            "accepted": torch.where(finished, -1, torch.minimum(accepted, emitted)),
        }

    return settled


def _row_of(rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """[B, V]: row at[b] of sample b of [B, S, V]."""
    found: torch.Tensor = gather_rows(rows, at[:, None], 1)
    return found[:, 0]


def _kept_states(hidden: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """[B, R, H]: the states of the root and of the accepted path."""
    root = torch.zeros_like(path[:, :1])
    kept: torch.Tensor = gather_rows(hidden, torch.cat([root, path], 1), 1)
    return kept


def _moved(cache: torch.Tensor, root: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """The cache with the rows `root + path` [B, depth] at `root + 1` and on."""
    places = torch.arange(1, path.shape[1] + 1, device=path.device)
    kept = gather_rows(cache, root[:, None] + path, 2)
    moved: torch.Tensor = scatter_rows(cache, root[:, None] + places, kept, 2)
    return moved

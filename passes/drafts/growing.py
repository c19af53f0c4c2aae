"""Grows the tree of a round level by level, whatever gives the logits of its rows."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import fx

from optimize.ir.builder import Builder
from optimize.ir.distribution import distribution, draws, draws_without_replacement
from optimize.ir.recording import record
from optimize.passes.drafts.draft_base import Round

Logits = Callable[[tuple[int, ...], fx.Node], fx.Node]
"""(rows of one level that have children, their tokens [B, s]) → logits [B, s, V]."""


def grown(
    builder: Builder,
    plan: Round,
    first: fx.Node,
    following: Logits,
    sampling: Mapping[str, fx.Node],
) -> dict[str, fx.Node]:
    """The outputs of a draft's graph: `drafted`, and `draft_probabilities` where tokens are drawn.

    Args:
        first: [B, 1, V] logits of the tokens behind the root.
        following: makes the logits of later rows; called once per level.
        sampling: the inputs as of `sampling_inputs`, named as there.
    """
    tree = plan.tree
    levels: list[fx.Node] = []
    probabilities: list[fx.Node] = []
    for depth, parents in enumerate(plan.parents):
        if depth == 0:
            logits = first
        else:
            places = [tree.levels[depth].index(row) for row in parents]
            logits = following(parents, record(builder, _picked, levels[-1], places))
        counts = [len(tree.children[row]) for row in parents]
        if plan.sampling is None:
            levels.append(record(builder, _likeliest, logits, counts))
            continue
        rows = [child for row in parents for child in tree.children[row]]
        given = (sampling["draft_uniforms"], sampling["temperature"], sampling.get("top_p"))
        replaces = plan.verifier.siblings != "without_replacement"
        top_k = plan.sampling.top_k
        p, tokens = record(builder, _drawn, logits, counts, rows, replaces, top_k, *given)
        probabilities.append(p)
        levels.append(tokens)
    outputs = {"drafted": record(builder, _joined, levels)}
    if probabilities and plan.verifier.needs_draft:
        outputs["draft_probabilities"] = record(builder, _joined, probabilities)
    return outputs


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(parts), 1) if len(parts) > 1 else parts[0].clone()


def _picked(tokens: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
    """Some columns of [B, n]."""
    if list(places) == list(range(tokens.shape[1])):
        return tokens
    return torch.cat([tokens[:, place : place + 1] for place in places], 1)


def _likeliest(logits: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """The counts[i] likeliest tokens behind row i of [B, s, V], one row after another: [B, n]."""
    most = max(counts)
    if most == 1:
        return logits.argmax(-1)
    tokens = logits.topk(most, -1).indices
    if min(counts) == most:
        return tokens.flatten(1)
    return torch.cat([tokens[:, row, :count] for row, count in enumerate(counts)], 1)


def _drawn(
    logits: torch.Tensor,
    counts: Sequence[int],
    rows: Sequence[int],
    replaces: bool,
    top_k: int | None,
    uniforms: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The distributions [B, s, V] behind the rows, and the tokens [B, n] drawn from them.

    Args:
        rows: of the tree, whose tokens are drawn; consecutive. Each has its uniform.
    """
    draw = draws if replaces else draws_without_replacement
    p = distribution(logits, temperature, top_p, top_k)
    own = uniforms[:, rows[0] - 1 : rows[-1]]
    count = counts[0]
    if min(counts) == max(counts):
        flat = draw(p.reshape(-1, p.shape[-1]), own.reshape(-1, count))
        return p, flat.reshape(-1, len(rows))
    tokens, first = [], 0
    for row, count in enumerate(counts):
        tokens.append(draw(p[:, row], own[:, first : first + count]))
        first += count
    return p, torch.cat(tokens, 1)

"""One stage of `prune_visual_tokens`: scores, choice and cut, put into a prefill graph."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from optimize.ir.axis_rules import infer_axes
from optimize.ir.builder import Builder
from optimize.ir.cache_lengths import Cut
from optimize.ir.graph import Graph, shape
from optimize.ir.image_span import ImageSpan
from optimize.ir.layer_inputs import decoder_layers
from optimize.ir.position_free import position_nodes, without_positions
from optimize.ir.recording import record
from optimize.ir.row_pruning import Kept, with_rows_dropped
from optimize.passes.visual_score import Amount, Rows, image_attention, kept_rows, kept_tokens

IMPORTANCE = "importance"
"""The request field of criterion "external"."""


@dataclass(frozen=True)
class Stage:
    """What one stage does.

    Attributes:
        number: 1 or 2.
        cut: the layer before which it drops rows, and the caches from there on.
        amount: how many tokens it keeps.
        count: image tokens before it, of the sample that has most.
        criterion: "feather" scores without rotary positions, "fastv" with them, "external" takes
            the request's importance.
        all_keys: normalise over all keys, not over the image.
    """

    number: int
    cut: Cut
    amount: Amount
    count: int
    criterion: str
    all_keys: bool


def pruned(graph: Graph, stage: Stage, span: ImageSpan) -> tuple[Graph, bool]:
    """The prefill graph with a stage put in, and whether its scores had positions to leave out.

    The graph gets the outputs `dropped_i` [B], rows that are missing from here on, and `kept_i`
    [B, most], raster numbers of the tokens that are left, then -1.

    Raises:
        CannotSubset: an op behind the cut needs all rows of the sequence.
    """
    axes = infer_axes(graph)
    layers = decoder_layers(graph, axes)
    scoring = layers[stage.cut.layer - 1]
    old = graph.output_nodes()

    def choose(builder: Builder, copies: Callable[[fx.Node], fx.Node]) -> Kept:
        rows = copies(old["rows"])
        before, numbers = None, None
        if stage.number > 1:
            before = copies(old[f"dropped_{stage.number - 1}"])
            numbers = copies(old[f"kept_{stage.number - 1}"])
        if stage.criterion == "external":
            query = key = _importance(builder, copies, graph, span)
        elif stage.criterion == "fastv":
            query, key = (copies(item) for item in scoring.site.args[:2])  # type: ignore[arg-type]
        else:
            query, key = without_positions(builder, copies, graph, scoring)
        hidden = copies(layers[stage.cut.layer].hidden)
        scale = scoring.site.kwargs.get("scale")
        index, dropped, kept, used = record(
            builder, _choice, stage, span, scale, rows, before, numbers, query, key, hidden
        )
        length = builder.call(torch.ops.aten.sym_size.int, index, 1)
        outputs = {f"dropped_{stage.number}": dropped, f"kept_{stage.number}": kept}
        return Kept(index, length, used, outputs, stage.cut.capacity)

    new = with_rows_dropped(graph, axes, stage.cut.layer, layers, choose)
    return new, bool(position_nodes(graph, scoring))


def _importance(
    builder: Builder, copies: Callable[[fx.Node], fx.Node], graph: Graph, span: ImageSpan
) -> fx.Node:
    """The input that takes the place of scores, [B, tokens] float32."""
    if IMPORTANCE in graph.inputs:
        return copies(graph.node(IMPORTANCE))
    batch = shape(graph.node("lengths"))[0]
    return builder.input(IMPORTANCE, builder.fake((batch, span.tokens), torch.float32))


def _choice(
    stage: Stage,
    span: ImageSpan,
    scale: float | None,
    prompt_rows: torch.Tensor,
    before: torch.Tensor | None,
    numbers: torch.Tensor | None,
    query: torch.Tensor,
    key: torch.Tensor,
    hidden: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Index, dropped rows, raster numbers kept, and rows used; see `visual_score`."""
    own = torch.full_like(prompt_rows, span.tokens)
    used = prompt_rows
    if before is not None:
        own, used = own - before, used - before
    rows = Rows(span.offset, stage.count, used, own)
    if stage.criterion == "external":
        scores = query
        if numbers is not None:
            scores = torch.gather(scores, 1, numbers.clamp(min=0))
    else:
        scores = image_attention(query, key, rows, scale, image_only=not stage.all_keys)
    kept = kept_tokens(scores, rows, stage.amount)
    index, chosen, count = kept_rows(kept, rows, stage.amount, hidden.shape[1])
    if numbers is not None:
        earlier = torch.gather(numbers, 1, chosen.clamp(min=0))
        chosen = torch.where(chosen < 0, chosen, earlier)
    return index, span.tokens - count, chosen, used - own + count

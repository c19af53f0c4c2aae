"""Checks a pruned prefill against the whole one with the dropped tokens masked as keys.

Masking leaves the dropped rows in the sequence, where nothing sees them any more; pruning takes
them out. The last token's logits must be the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from optimize.ir.builder import Builder, builder_with_inputs
from optimize.ir.graph import Graph, shape
from optimize.ir.image_span import ImageSpan
from optimize.ir.program import Program
from optimize.ir.recording import record
from optimize.ir.token_axis import SDPA
from optimize.ir.torch_engine import TorchEngine
from optimize.passes.pass_base import OracleResult

BOUNDS = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}
"""Largest difference of logits, as a share of the largest: roundings of a whole network."""


def pruning_oracles(
    before: Program,
    after: Program,
    request: Mapping[str, Any],
    cuts: Sequence[int],
    span: ImageSpan,
) -> list[OracleResult]:
    """What holds of a pruned program on a request.

    Args:
        before, after: the program without and with pruning.
        cuts: the layers before which tokens are dropped.
        span: the image in the sequence.
    """
    run = after.prepared(request, 0)
    next(run.steps())
    kept = [run.read(f"kept_{stage}") for stage in range(1, len(cuts) + 1)]
    found = run.read("logits")
    expected = masked_logits(before, request, cuts, span, kept)
    largest = float(np.abs(expected).max()) or 1.0
    error = float(np.abs(found - expected).max()) / largest
    dtype = before.graphs["prefill"].output_nodes()["logits"].meta["val"].dtype
    return [
        OracleResult("pruned_equals_masked", error, BOUNDS[dtype]),
        OracleResult("kept_out_of_order", float(_misplaced(kept)), 0.0),
    ]


def masked_logits(
    program: Program,
    request: Mapping[str, Any],
    cuts: Sequence[int],
    span: ImageSpan,
    kept: Sequence[NDArray[np.int64]],
) -> NDArray[Any]:
    """Logits [B, V] of the first new token, with the tokens that are not kept masked as keys.

    Args:
        program: one that is not pruned.
        kept: for each cut, raster numbers [B, most] of the tokens kept, -1 for none.
    """
    run = program.prepared({**request, "max_new_tokens": 1}, 0)
    graph = _with_key_masks(program.graphs["prefill"], cuts)
    engine = cast(TorchEngine, run.engine)
    length = run.sizes["prompt"] + span.tokens
    masks = {}
    for number, numbers in enumerate(kept, start=1):
        mask = np.ones((len(numbers), length), dtype=bool)
        mask[:, span.offset : span.offset + span.tokens] = False
        for sample, chosen in enumerate(numbers):
            mask[sample, span.offset + chosen[chosen >= 0]] = True
        masks[f"keys_{number}"] = engine.upload(mask, "bool")
    inputs = {
        name: engine.upload(run.request[name], run.request_dtypes[name]) for name in run.request
    }
    features = program.graphs["vision"].run(program.weights, inputs)
    made = graph.run(program.weights, {**inputs, **features, **masks})
    return engine.download(made["logits"])


def _misplaced(kept: Sequence[NDArray[np.int64]]) -> int:
    """How many kept tokens are not in raster order, or were dropped before."""
    wrong = 0
    for stage, numbers in enumerate(kept):
        for sample, chosen in enumerate(numbers):
            real = chosen[chosen >= 0]
            wrong += int((np.diff(real) <= 0).sum())
            if stage:
                wrong += len(set(real.tolist()) - set(kept[stage - 1][sample].tolist()))
    return wrong


def _with_key_masks(graph: Graph, cuts: Sequence[int]) -> Graph:
    """The prefill with masks of keys `keys_1` [B, S] … as inputs, each from its cut on."""
    builder, arguments = builder_with_inputs(graph)
    sites = [node for node in graph.graph.nodes if node.target is SDPA]
    batch, _, length, _ = shape(cast(fx.Node, sites[0].args[0]))
    inputs = [
        builder.input(f"keys_{number}", builder.fake((batch, length), torch.bool))
        for number in range(1, len(cuts) + 1)
    ]
    instead: dict[fx.Node, Callable[..., fx.Node]] = {}
    for layer, site in enumerate(sites):
        passed = sum(layer >= cut for cut in cuts)
        if passed:
            instead[site] = _masked(builder, inputs[passed - 1])
    mapping = builder.inlined_nodes(graph, arguments, instead=instead)
    logits = mapping[graph.output_nodes()["logits"]]
    return builder.finish({"logits": logits}, graph.dimensions)


def _masked(builder: Builder, keys: fx.Node) -> Callable[..., fx.Node]:
    def make(query: fx.Node, *rest: Any, **kwargs: Any) -> fx.Node:
        key, value, mask, dropout, causal = (*rest, None, 0.0, False)[:5]
        seen = record(builder, _visible, query, keys, mask, bool(causal))
        return builder.call(SDPA, query, key, value, seen, dropout, False, **kwargs)

    return make


def _visible(
    query: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | None, causal: bool
) -> torch.Tensor:
    seen = keys[:, None, None, :]
    if mask is not None:
        seen = seen & mask
    if causal:
        numbers = torch.arange(query.shape[2], device=query.device)
        seen = seen & (numbers[None, :] <= numbers[:, None])
    return seen

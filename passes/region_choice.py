"""Which tokens a step recomputes: the region choice of `cache_regions`, as graph nodes.

Everything here is nodes of the step graph, so each engine makes the same choice. Per token there
are a score, how often it was dropped, and its age (steps since it was recomputed). In the order
they are
taken:

1. the oldest ceil(N / max_age) tokens are recomputed, so that none waits longer than `max_age`;
2. of the rest, the lowest scores are dropped, raised by `weight`;
3. of the rest, the highest scores are dropped, lowered by `weight`.

The weight grows with the drops of a token, so both lists push a token that was dropped often
towards being recomputed. (The published code raises both, which makes the tokens of the second list
starve.) With metric "change" the score is how fast a token's prediction changed per step when it
was last
recomputed, and the weight the logarithm of the steps it would be out of date by: the product is the
expected error of leaving it alone.
"""

import operator
from dataclasses import dataclass

import torch
from torch import fx

from optimize.ir.axes import Axes, Axis
from optimize.ir.builder import Builder
from optimize.ir.token_axis import CannotSubset

aten = torch.ops.aten
TINY = 1e-20


@dataclass(frozen=True)
class Counts:
    """How many tokens of a step are recomputed, dropped, and reserved for the oldest.

    Attributes:
        tokens: all of them.
        active: recomputed.
        low, high: dropped from the bottom and from the top of the scores.
        oldest: of the active ones, chosen by age.
    """

    tokens: int
    active: int
    low: int
    high: int
    oldest: int


def token_scores(
    builder: Builder,
    prediction: fx.Node,
    prediction_axes: list[Axis],
    axes: Axes,
    tokens: Axis,
    metric: str,
) -> fx.Node:
    """[B, tokens] float32: how strongly the prediction varies within each token.

    Args:
        prediction: the guided prediction, of the latent's shape.
        prediction_axes: its axes; the token axis, or its factors, must be among them.
        metric: "std" over channels, or "norm" over channels, averaged over a token's pixels.
    Raises:
        CannotSubset: the tokens cannot be found again in the prediction.
    """
    wanted = axes.factors(tokens)
    order: list[Axis] = []
    channel: set[int] = set()
    for axis in prediction_axes[1:]:
        factors = axes.factors(axis)
        if not any(factor in wanted for factor in factors):
            channel.update(range(len(order), len(order) + len(factors)))
        order.extend(factors)
    if any(order.count(axis) != 1 for axis in wanted):
        raise CannotSubset("the tokens cannot be found again in the dimensions of the prediction")
    sizes = [-1, *(axis.hint for axis in order)]
    pixels = [i for i, axis in enumerate(order) if i not in channel and axis not in wanted]
    permutation = [0, *(order.index(axis) + 1 for axis in wanted)]
    permutation += [i + 1 for i in [*pixels, *sorted(channel)]]
    value = builder.call(aten.reshape.default, prediction, sizes)
    value = builder.call(aten.permute.default, value, permutation)
    channels = 1
    for position in channel:
        channels *= order[position].hint
    area = 1
    for position in pixels:
        area *= order[position].hint
    value = builder.call(aten.reshape.default, value, [-1, tokens.hint, area, channels])
    value = builder.call(aten._to_copy.default, value, dtype=torch.float32)
    if metric == "std" and channels > 1:
        mean = builder.call(aten.mean.dim, value, [3], True)
        value = builder.call(aten.sub.Tensor, value, mean)
    square = builder.call(aten.mul.Tensor, value, value)
    total = builder.call(aten.sum.dim_IntList, square, [3])
    if metric == "std" and channels > 1:
        total = builder.call(aten.div.Tensor, total, float(channels - 1))
    deviation = builder.call(aten.sqrt.default, total)
    return builder.call(aten.mean.dim, deviation, [2])


@dataclass(frozen=True)
class Choice:
    """The nodes of one region choice: ascending rows [B, active], and the new counters."""

    index: fx.Node
    drops: fx.Node
    age: fx.Node


def change_rate(
    builder: Builder, change: fx.Node, score: fx.Node, age_before: fx.Node, age: fx.Node
) -> fx.Node:
    """[B, tokens]: change per step of the tokens just recomputed, the old rate of the others.

    Args:
        change: how far each token's prediction moved in this step; 0 where it was not recomputed.
        score: the old rates.
        age_before, age: before and after this step.
    """
    steps = builder.call(aten.add.Tensor, age_before, 1.0)
    rate = builder.call(aten.div.Tensor, change, steps)
    fresh = builder.call(aten.lt.Scalar, age, 0.5)
    return builder.call(aten.where.self, fresh, rate, score)


def choose(
    builder: Builder,
    counts: Counts,
    starvation: float | None,
    score: fx.Node,
    drops: fx.Node,
    age: fx.Node,
) -> Choice:
    """Adds the nodes that choose the rows of a step.

    Args:
        score, drops, age: [B, tokens] float32.
        starvation: how much one drop weighs against the logarithm of the score, >= 0; None weighs
            by the logarithm of the steps a token would be out of date.
    """
    zeros = builder.call(aten.zeros_like.default, score)
    low = float(torch.finfo(torch.float32).min)

    def mask(scores: fx.Node, count: int) -> fx.Node:
        """[B, tokens] bool: the `count` largest."""
        top = builder.call(aten.topk.default, scores, count, 1)
        rows = builder.call(operator.getitem, top, 1)
        ones = builder.call(aten.scatter.value, zeros, 1, rows, 1.0)
        return builder.call(aten.gt.Scalar, ones, 0.5)

    def excluded(scores: fx.Node, taken: fx.Node | None) -> fx.Node:
        if taken is None:
            return scores
        return builder.call(aten.masked_fill.Scalar, scores, taken, low)

    def either(first: fx.Node | None, second: fx.Node) -> fx.Node:
        return second if first is None else builder.call(aten.logical_or.default, first, second)

    tiny = builder.call(aten.add.Tensor, score, TINY)
    logarithm = builder.call(aten.log.default, tiny)
    older = builder.call(aten.add.Tensor, age, 1.0)
    if starvation is None:
        weight = builder.call(aten.log.default, older)
    else:
        weight = builder.call(aten.mul.Tensor, drops, starvation)
    taken: fx.Node | None = None
    inactive: fx.Node | None = None
    if counts.oldest:
        largest = builder.call(aten.amax.default, tiny, [1], True)
        share = builder.call(aten.div.Tensor, tiny, largest)
        half = builder.call(aten.mul.Tensor, share, 0.5)
        taken = mask(builder.call(aten.add.Tensor, age, half), counts.oldest)
    if counts.low:
        raised = builder.call(aten.add.Tensor, logarithm, weight)
        inactive = mask(excluded(builder.call(aten.neg.default, raised), taken), counts.low)
        taken = either(taken, inactive)
    if counts.high:
        lowered = builder.call(aten.sub.Tensor, logarithm, weight)
        inactive = either(inactive, mask(excluded(lowered, taken), counts.high))
    places = builder.call(aten.arange.start_step, counts.tokens, 0, -1, dtype=torch.float32)
    kept = builder.call(aten.add.Tensor, zeros, places)
    if inactive is not None:
        kept = builder.call(aten.masked_fill.Scalar, kept, inactive, 0.0)
    top = builder.call(aten.topk.default, kept, counts.active, 1)
    index = builder.call(operator.getitem, top, 1)
    if inactive is None:
        return Choice(index, drops, zeros)
    dropped = builder.call(aten._to_copy.default, inactive, dtype=torch.float32)
    new_drops = builder.call(aten.add.Tensor, drops, dropped)
    return Choice(index, new_drops, builder.call(aten.mul.Tensor, older, dropped))

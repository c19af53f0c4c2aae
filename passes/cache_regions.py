"""Recomputes only part of a denoiser's tokens at most steps; the rest comes from caches.

    step 0..3     prediction = denoiser(latent, …)                     all tokens; fills the caches
    step 4..      rows = choose(score, drops, age)                     keep_ratio of the tokens
                  prediction = denoiser_rows(latent, rows, caches, …)  fresh rows over cached ones

Keys and values of every self-attention site and the prediction itself are cached, so fresh tokens
attend to all tokens and every token moves at every step. The choice of the rows is part of the
graph; guidance halves share it; samples of a batch choose their own.

Changes: the denoiser graph gains a variant on some rows; caches and counters become loop state.
Declines when: the program generates tokens; the loop is already fused; the graph has no
    self-attention over tokens of the latent; the number of tokens is not fixed; no step would
    recompute less than everything; `max_age` cannot be held with so few rows.
Numerics: approximate; exact at `keep_ratio` 1.
Source: Liu et al. (2025), Region-Adaptive Sampling for Diffusion Transformers, section 3; the sign
    of the starvation term is corrected, and the longest wait of a token is bounded.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import fx

from optimize.capture.from_denoiser import dimensions_of
from optimize.ir.axes import Axes, Axis
from optimize.ir.axis_rules import infer_axes
from optimize.ir.builder import Builder, builder_with_inputs
from optimize.ir.exporting import Target
from optimize.ir.graph import Graph
from optimize.ir.program import Program, denoising_repeat, with_repeat
from optimize.ir.row_subset import Cache, RowSubset
from optimize.ir.token_axis import CannotSubset, token_axis, token_count
from optimize.ir.torch_engine import DTYPE_NAMES
from optimize.passes.choices import Choice, RealNumber, WholeNumber
from optimize.passes.pass_base import Declined, OracleResult, Pass, Rewritten
from optimize.passes.region_choice import Counts, change_rate, choose, token_scores
from optimize.runtime.loop import Binding, Call, Destination, Slot

COUNTERS = ("score", "drops", "age")
LAST = "last_prediction"
SUBSET_BOUND = {torch.float64: 1e-10, torch.float32: 2e-4}


@dataclass(frozen=True)
class RegionPlan:
    """Which steps recompute all tokens, and how many rows the others recompute."""

    warmup: int
    final: int
    resets: tuple[int, ...]
    reset_interval: int
    keep: tuple[tuple[int, float], ...]
    tokens: int

    def rows(self, step: int, steps: int) -> int | None:
        """The number of rows of a step, or None where all tokens are recomputed."""
        if step < self.warmup or step >= steps - self.final or step in self.resets:
            return None
        if self.reset_interval and (step - self.warmup + 1) % self.reset_interval == 0:
            return None
        ratio = [ratio for start, ratio in self.keep if start <= step]
        return max(1, round(ratio[-1] * self.tokens)) if ratio else None

    def bodies(self, steps: int) -> tuple[str, ...]:
        """The loop body of each step."""
        rows = [self.rows(step, steps) for step in range(steps)]
        return tuple("step" if count is None else f"rows_{count}" for count in rows)


@dataclass(frozen=True)
class CacheRegions(Pass):
    """Options of `cache_regions`.

    Args:
        keep_ratio: fraction of tokens recomputed at a region step, in (0, 1]; or pairs
            (first step, fraction) for a ratio that changes on the way.
        warmup: first steps that recompute everything, >= 1.
        final: last steps that recompute everything, >= 0.
        resets: further steps that recompute everything.
        reset_interval: recompute everything after this many steps; 0 never.
        metric: what a token is scored by: "change" of its prediction per step (needs warmup >= 2),
            or "std" or "norm" of its prediction over channels, as published.
        drop_high: share of the dropped tokens taken from the highest scores, in [0, 1].
        starvation: weight of earlier drops, >= 0; "change" weighs by age instead.
        max_age: the longest a token may wait, in region steps; 0 sets no bound.
    """

    keep_ratio: float | tuple[tuple[int, float], ...] = 0.5
    warmup: int = 4
    final: int = 0
    resets: tuple[int, ...] = ()
    reset_interval: int = 0
    metric: Literal["change", "std", "norm"] = "change"
    drop_high: float = 0.0
    starvation: float = 0.1
    max_age: int = 8

    numerics: ClassVar[Literal["exact", "rounding", "approximate"]] = "approximate"

    def __post_init__(self) -> None:
        for _, ratio in self.ratios():
            if not 0 < ratio <= 1:
                raise ValueError(f"keep_ratio: found {ratio}, expected a fraction in (0, 1]")
        if self.warmup < 1:
            raise ValueError(
                f"warmup: found {self.warmup}, expected at least 1: the caches start empty"
            )
        if self.metric == "change" and self.warmup < 2:
            raise ValueError(
                f"warmup: found {self.warmup}, expected at least 2 for metric 'change'"
            )
        for name in ("final", "reset_interval", "max_age", "starvation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 0")
        if not 0 <= self.drop_high <= 1:
            raise ValueError(f"drop_high: found {self.drop_high}, expected a share in [0, 1]")
        if self.metric not in ("change", "std", "norm"):
            raise ValueError(f"metric: found {self.metric!r}, expected 'change', 'std' or 'norm'")

    def ratios(self) -> tuple[tuple[int, float], ...]:
        """Pairs (first step, fraction), in order of steps."""
        if isinstance(self.keep_ratio, (int, float)):
            return ((0, float(self.keep_ratio)),)
        return tuple(sorted((int(step), float(ratio)) for step, ratio in self.keep_ratio))

    @classmethod
    def choices(cls, program: Program, target: Target) -> Mapping[str, Choice]:
        return {
            "keep_ratio": RealNumber(0.25, 0.9),
            "warmup": WholeNumber(2, 8),
            "final": WholeNumber(0, 2),
            "max_age": WholeNumber(4, 16),
        }

    def identity(self) -> Self:
        return replace(self, keep_ratio=1.0)

    def declines(self, program: Program) -> str | None:
        if program.generates_tokens:
            return "the program generates tokens, expected one that denoises"
        if "denoiser" not in program.graphs or "solver" not in program.graphs:
            return "the loop is already fused; list cache_regions before fuse_solver"
        if program.plan is not None:
            return "the loop already caches regions"
        try:
            tokens = token_count(program.graphs["denoiser"])
        except CannotSubset as reason:
            return str(reason)
        steps = len(denoising_repeat(program).steps)
        plan = self._plan(tokens)
        counts = {plan.rows(step, steps) for step in range(steps)} - {None}
        if not counts:
            return (
                f"none of the {steps} steps is a region step: warmup {self.warmup}, final "
                f"{self.final}, resets {list(self.resets)}, reset_interval {self.reset_interval}"
            )
        for count in counts:
            assert count is not None
            if self.max_age and self._oldest(tokens) > count:
                return (
                    f"max_age {self.max_age} needs at least {self._oldest(tokens)} of "
                    f"{tokens} tokens per step, keep_ratio leaves {count}"
                )
        return None

    def rewrite(self, program: Program) -> Rewritten:
        graph = program.graphs["denoiser"]
        axes = infer_axes(graph)
        tokens = token_axis(graph, axes)
        plan = self._plan(tokens.hint)
        repeat = denoising_repeat(program)
        steps = len(repeat.steps)
        rows = sorted({plan.rows(step, steps) or 0 for step in range(steps)} - {0})
        graphs = {name: item for name, item in program.graphs.items() if name != "denoiser"}
        caches: tuple[Cache, ...] = ()
        try:
            for count in rows:
                graphs[f"denoiser_rows_{count}"], caches = self._row_graph(
                    graph, axes, tokens, self._counts(tokens.hint, count)
                )
            graphs["denoiser"] = self._whole_graph(graph, axes, tokens, caches)
        except CannotSubset as reason:
            raise Declined(str(reason)) from reason
        shape = dimensions_of(graph, graph.node("latent"))
        slots = [
            Slot(
                name=cache.name,
                dtype=DTYPE_NAMES[cache.source.meta["val"].dtype],
                shape=dimensions_of(graph, cache.source),
                in_place=True,
            )
            for cache in caches
        ]
        slots += [
            Slot(name=name, dtype="float32", shape=(shape[0], tokens.hint)) for name in COUNTERS
        ]
        state = list(COUNTERS)
        if self.metric == "change":
            dtype = DTYPE_NAMES[graph.node("latent").meta["val"].dtype]
            slots.append(Slot(name=LAST, dtype=dtype, shape=shape))
            state.append(LAST)
        denoise, *rest = repeat.bodies["step"]
        assert isinstance(denoise, Call)
        cached = [cache.name for cache in caches]
        outputs = denoise.outputs | {name: Destination(state=name) for name in (*cached, *state)}
        read = {name: Binding(source="state", name=name) for name in state}
        read_caches = {name: Binding(source="state", name=name) for name in cached}
        whole = {"inputs": {**denoise.inputs, **read}, "outputs": outputs}
        bodies = {"step": (denoise.model_copy(update=whole), *rest)}
        for count in rows:
            some = {
                "graph": f"denoiser_rows_{count}",
                "inputs": {**denoise.inputs, **read, **read_caches},
                "outputs": outputs,
            }
            bodies[f"rows_{count}"] = (denoise.model_copy(update=some), *rest)
        new_repeat = repeat.model_copy(update={"bodies": bodies, "steps": plan.bodies(steps)})
        loop = program.loop.model_copy(
            update={
                "slots": (*program.loop.slots, *slots),
                "body": with_repeat(program, new_repeat),
            }
        )
        sites = tuple(cache.source.name for cache in caches if cache.attention)
        return Rewritten(
            replace(program, graphs=graphs, loop=loop, plan=plan),
            sites,
            {
                "tokens": tokens.hint,
                "grid": [factor.hint for factor in axes.factors(tokens)],
                "rows": [plan.rows(step, steps) or tokens.hint for step in range(steps)],
                "cache_slots": len(caches),
            },
        )

    def oracles(
        self, before: Program, after: Program, request: Mapping[str, Any]
    ) -> list[OracleResult]:
        """With caches filled at the same latent and timestep, any rows give the whole result."""
        variants = sorted(name for name in after.graphs if name.startswith("denoiser_rows_"))
        run = after.prepared(request, seed=0)
        denoise = denoising_repeat(after).bodies["step"][0]
        assert isinstance(denoise, Call)
        run.begin()
        inputs = run.inputs(denoise, 0)
        whole = after.graphs["denoiser"].run(after.weights, inputs)
        results = []
        generator = torch.Generator().manual_seed(0)
        for variant in variants:
            state = {name: value for name, value in whole.items() if name in denoise.outputs}
            state["score"] = torch.rand(whole["score"].shape, generator=generator)
            state["drops"] = torch.zeros_like(state["score"])
            state["age"] = torch.zeros_like(state["score"])
            rows = after.graphs[variant].run(after.weights, {**inputs, **state})
            scale = float(whole["prediction"].abs().max()) or 1.0
            error = float((rows["prediction"] - whole["prediction"]).abs().max()) / scale
            bound = SUBSET_BOUND.get(_compute_dtype(before), 5e-2)
            results.append(OracleResult(f"subset_equals_whole_{variant}", error, bound))
        return results

    def _plan(self, tokens: int) -> RegionPlan:
        return RegionPlan(
            self.warmup, self.final, self.resets, self.reset_interval, self.ratios(), tokens
        )

    def _oldest(self, tokens: int) -> int:
        return math.ceil(tokens / self.max_age) if self.max_age else 0

    def _counts(self, tokens: int, active: int) -> Counts:
        dropped = tokens - active
        high = int(dropped * self.drop_high)
        return Counts(tokens, active, dropped - high, high, self._oldest(tokens))

    def _row_graph(
        self, graph: Graph, axes: Axes, tokens: Axis, counts: Counts
    ) -> tuple[Graph, tuple[Cache, ...]]:
        """The denoiser on some rows: chooses them, computes them, scores the result."""
        builder, arguments, state = self._opened(graph, tokens)
        starvation = None if self.metric == "change" else self.starvation
        choice = choose(builder, counts, starvation, *(state[name] for name in COUNTERS))
        subset = RowSubset(graph, axes, tokens, builder, choice.index, arguments).run()
        outputs = {**subset.outputs, **subset.updated}
        outputs |= self._scored(
            builder, graph, axes, tokens, state, subset.outputs["prediction"], choice.age
        )
        outputs["drops"] = choice.drops
        return builder.finish(outputs, graph.dimensions), subset.caches

    def _whole_graph(
        self, graph: Graph, axes: Axes, tokens: Axis, caches: tuple[Cache, ...]
    ) -> Graph:
        """The denoiser on all tokens, which fills the caches."""
        builder, arguments, state = self._opened(graph, tokens)
        nodes = builder.inlined_nodes(graph, arguments)
        outputs = {name: nodes[node] for name, node in graph.output_nodes().items()}
        outputs |= {cache.name: nodes[cache.source] for cache in caches}
        age = builder.call(torch.ops.aten.zeros_like.default, state["age"])
        outputs |= self._scored(builder, graph, axes, tokens, state, outputs["prediction"], age)
        outputs["drops"] = state["drops"]
        return builder.finish(outputs, graph.dimensions)

    def _opened(
        self, graph: Graph, tokens: Axis
    ) -> tuple[Builder, dict[str, fx.Node], dict[str, fx.Node]]:
        """A builder with the inputs of the denoiser, and those of the region choice."""
        builder, arguments = builder_with_inputs(graph)
        latent = graph.node("latent").meta["val"]
        counters = builder.fake((latent.shape[0], tokens.hint), torch.float32)
        state = {name: builder.input(name, counters) for name in COUNTERS}
        if self.metric == "change":
            state[LAST] = builder.input(LAST, latent)
        return builder, arguments, state

    def _scored(
        self,
        builder: Builder,
        graph: Graph,
        axes: Axes,
        tokens: Axis,
        state: Mapping[str, fx.Node],
        prediction: fx.Node,
        age: fx.Node,
    ) -> dict[str, fx.Node]:
        """The new scores and ages, and what the next scores need."""
        own = axes.of(graph.output_nodes()["prediction"])
        if self.metric != "change":
            score = token_scores(builder, prediction, own, axes, tokens, self.metric)
            return {"score": score, "age": age}
        moved = builder.call(torch.ops.aten.sub.Tensor, prediction, state[LAST])
        change = token_scores(builder, moved, own, axes, tokens, "norm")
        score = change_rate(builder, change, state["score"], state["age"], age)
        return {"score": score, "age": age, LAST: prediction}


def _compute_dtype(program: Program) -> torch.dtype:
    dtypes = {item.dtype for item in program.weights.values() if item.is_floating_point()}
    return (
        torch.float64
        if dtypes == {torch.float64}
        else (torch.float32 if torch.float32 in dtypes and len(dtypes) == 1 else torch.bfloat16)
    )


def active_maps(program: Program, request: Mapping[str, Any], seed: int) -> list[Any]:
    """Which tokens each step recomputed, of the first sample: [step][tokens] booleans."""
    ages = program.watch(("age",), seed=seed, **request)["age"]
    return [(np.asarray(age[0]) == 0).tolist() for age in ages]

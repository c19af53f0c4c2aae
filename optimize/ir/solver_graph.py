"""A solver as graph nodes: one call of `optimize::solver_step`, alone or behind a denoiser.

    solver graph      latent', kept' = solver_step(latent, prediction, kept, row)
    fused graph       latent', kept' = solver_step(latent, output, kept, row, guidance_scale)

In a fused graph the kernel reads what the network returned, in the network's own dtype, and mixes
the halves of guidance itself: no intermediate tensor is left between network and latent.
"""

import operator
from typing import Any

import torch
from torch import fx

from optimize.ir.builder import Builder, fake_mode_of
from optimize.ir.graph import Graph
from optimize.ir.solver_step import COEFFICIENTS, CONVERSION, SolverStep, history_slot, pattern_of
from optimize.kernels.dynamic_threshold import schema as _threshold  # noqa: F401  registers the op
from optimize.kernels.solver_step import schema as _step  # noqa: F401
from optimize.runtime.loop import Binding, Call, Destination, Noise, Slot

NOISE = "step_noise"
"""The noise of a stochastic solver."""

aten = torch.ops.aten


def solver_graph(denoiser: Graph, step: SolverStep) -> Graph:
    """The solver as a graph of its own, for latents of a denoiser."""
    builder = Builder(fake_mode_of(denoiser))
    value = denoiser.node("latent").meta["val"]
    latent = builder.input("latent", value)
    prediction = builder.input("prediction", value)
    kept = [builder.input(history_slot(age + 1), value) for age in range(step.history)]
    noise = builder.input(NOISE, value) if step.noisy else None
    rows = {
        name: builder.input(name, builder.fake(table.shape[1:], value.dtype))
        for name, table in step.tables.items()
    }
    call = torch.ops.optimize.solver_step.default
    if step.threshold is not None:
        assert step.conversion is not None
        pattern = pattern_of(step.conversion)
        clean = builder.call(call, latent, prediction, [], rows[CONVERSION], pattern)
        prediction = builder.call(
            torch.ops.optimize.dynamic_threshold.default,
            builder.call(operator.getitem, clean, 0),
            step.threshold.ratio,
            step.threshold.largest,
        )
    fresh = [] if noise is None else [noise]
    moved = builder.call(call, latent, prediction, kept, rows[COEFFICIENTS], step.pattern, *fresh)
    outputs = {"latent": builder.call(operator.getitem, moved, 0)}
    for age in range(1, step.history + 1):
        outputs[history_slot(age)] = builder.call(operator.getitem, moved, age)
    return builder.finish(outputs, denoiser.dimensions)


def fused_graph(denoiser: Graph, solver: Graph, *, evaluate: bool = False) -> Graph:
    """A denoiser with the solver behind it, as one graph.

    Inputs and outputs are those of both, without the prediction between them.

    Args:
        evaluate: the solver was traced by itself, so its shapes are worked out anew.
    """
    builder = Builder(fake_mode_of(denoiser))
    inputs: dict[str, fx.Node] = {}
    for graph in (denoiser, solver):
        for name in graph.inputs:
            if name != "prediction" and name not in inputs:
                value = graph.node(name).meta["val"]
                if evaluate and graph is solver:
                    latent = denoiser.node("latent").meta["val"]
                    like = value.dim() == latent.dim()
                    value = latent if like else builder.fake(value.shape, value.dtype)
                inputs[name] = builder.input(name, value)
    outputs = builder.inline(denoiser, inputs)
    prediction = outputs.pop("prediction")
    made = builder.inline(solver, {**inputs, "prediction": prediction}, evaluate)
    _fuse_guidance(builder, prediction)
    return builder.finish({**made, **outputs}, denoiser.dimensions)


def _fuse_guidance(builder: Builder, prediction: fx.Node) -> None:
    """Lets `solver_step` read what the network returned, where only conversions lie between."""
    raw, scale = _guidance_of(prediction)
    for user in list(prediction.users):
        if user.target is torch.ops.optimize.solver_step.default and user.args[1] is prediction:
            latent, _, kept, row, pattern, *rest = user.args
            if scale is not None:
                rest = [rest[0] if rest else None, scale]
            user.args = (latent, raw, kept, row, pattern, *rest)
            builder.evaluate(user)


def _guidance_of(prediction: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """(network output, guidance scale) of a prediction u + scale * (c - u); no scale without."""
    if prediction.target is aten.add.Tensor:
        first, product = _operands(prediction)
        if _is(product, aten.mul.Tensor):
            scale, change = _operands(product)
            if _is(change, aten.sub.Tensor) and _operands(change)[1] is first:
                whole = _halves(first, _operands(change)[0])
                if whole is not None:
                    return _unconverted(whole), scale
    return _unconverted(prediction), None


def _operands(node: fx.Node) -> tuple[Any, Any]:
    first, second, *_ = node.args
    return first, second


def _is(node: Any, target: object) -> bool:
    return isinstance(node, fx.Node) and node.target is target


def _halves(first: Any, second: Any) -> fx.Node | None:
    """The tensor whose first and second half along dimension 0 these are."""
    if not (_is(first, aten.slice.Tensor) and _is(second, aten.slice.Tensor)):
        return None
    whole, dim, start, middle = (*first.args, None)[:4]
    fits = (
        second.args[:2] == (whole, 0)
        and dim == 0
        and start in (None, 0)
        and len(second.args) == 3
        and second.args[2] is middle
    )
    return whole if fits and isinstance(whole, fx.Node) else None


def _unconverted(node: fx.Node) -> fx.Node:
    """What a conversion to a wider float dtype converts."""
    if node.target is aten._to_copy.default and set(node.kwargs) == {"dtype"}:
        source: Any = node.args[0]
        if source.meta["val"].dtype.is_floating_point:
            node = source
    return node


def solver_call(step: SolverStep) -> Call:
    """The call of a solver's own graph."""
    state = ["latent", "prediction", *kept_slots(step)]
    inputs = {name: Binding(source="state", name=name) for name in state}
    inputs |= {name: Binding(source="table", name=name) for name in step.tables}
    if step.noisy:
        inputs[NOISE] = Binding(source="noise", name=NOISE)
    return Call(
        graph="solver",
        inputs=inputs,
        outputs={name: Destination(state=name) for name in ("latent", *kept_slots(step))},
    )


def fused_call(denoiser: Call, solver: Call, graph: str) -> Call:
    """The call of a fused graph in place of a denoiser's and a solver's."""
    inputs = {**denoiser.inputs, **solver.inputs}
    outputs = {**solver.outputs, **denoiser.outputs}
    return Call(
        graph=graph,
        inputs={name: item for name, item in inputs.items() if name != "prediction"},
        outputs={name: item for name, item in outputs.items() if name != "prediction"},
    )


def kept_slots(step: SolverStep) -> list[str]:
    """The slots of what a solver keeps from call to call."""
    return [history_slot(age + 1) for age in range(step.history)]


def solver_slots(step: SolverStep, latent: Slot) -> tuple[Slot, ...]:
    """What a solver keeps, each like the latent, from zeros."""
    return tuple(
        Slot(name=name, dtype=latent.dtype, shape=latent.shape) for name in kept_slots(step)
    )


def solver_noise(step: SolverStep, latent: Slot) -> tuple[Noise, ...]:
    """The fresh noise of a stochastic solver."""
    if not step.noisy:
        return ()
    return (Noise(name=NOISE, dtype=latent.dtype, shape=latent.shape, steps=step.calls),)

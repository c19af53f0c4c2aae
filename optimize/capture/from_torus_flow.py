"""Captures a periodic Bayesian flow over angles as a program.

The captured program has two graphs, called in turn: "denoiser" predicts the angles from a belief,
"solver" draws the next belief around the prediction. All randomness is standard normal noise:
a belief is exp(i prediction) times R = sum_j alpha_j exp(i u_j), and u_j = g_j(z_j) for normal z_j
with g_j the quantile function of vM(0, alpha_j), a table.

Source: Wu et al. (2025), arXiv 2502.02016, algorithm 2; that R does not depend on the prediction
follows from turning the circle.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from optimize.capture.check_model import check_finite
from optimize.capture.from_denoiser import dimensions_of
from optimize.capture.from_module import MAX_BATCH, evaluation_mode, prepare, trace
from optimize.ir.builder import Builder, fake_mode_of
from optimize.ir.errors import InputModelError
from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.ir.torch_engine import DTYPE_NAMES
from optimize.ir.torus_flow import TorusFlowLoop
from optimize.ir.von_mises_flow import LARGEST_DEVIATION, quantiles
from optimize.runtime.loop import (
    Binding,
    Call,
    Destination,
    Input,
    Loop,
    Noise,
    Repeat,
    Signature,
    Slot,
)

aten = torch.ops.aten

QUANTILE_POINTS = 2049
"""Grid points of each quantile table; interpolation errs by less than 1e-5 radians."""

QUANTILES_WEIGHT = "von_mises_quantiles"

UNIFORM_SCALE = 8.0
"""Radians: a normal number of this deviation, wrapped, is uniform up to 3e-14 of its density."""


def capture_torus_flow(
    model: Any,
    example_inputs: Mapping[str, Any] | None,
    loop: TorusFlowLoop,
    *,
    dynamic: bool | None = None,
) -> Program:
    """Captures a module that predicts angles, and its sampling loop.

    Args:
        model: takes the mean and concentration of a belief, a step number and conditioning;
            returns angles in radians, of the shape of the mean. Left exactly as it was.
        example_inputs: `forward`'s arguments by name; tensors whose first dimension equals the
            mean's are batched.
        loop: how the module is sampled.
        dynamic: whether the batch may vary, as for `from_denoiser.capture`.
    Returns:
        A program that takes the conditioning arguments and `seed`, and returns {"coordinates": …}
        of the shape of the mean: angle / 2 pi + 1/2, in [0, 1), float32.
    Raises:
        InputModelError: the model or the example inputs cannot be captured.
        NumericsError: NaN or Inf in the weights.
    """
    inputs = prepare(model, example_inputs)
    for name in (loop.mean, loop.concentration, loop.step_index):
        if not isinstance(inputs.get(name), torch.Tensor):
            raise InputModelError(
                f"loop: found no tensor {name!r} among example_inputs {sorted(inputs)}; name the "
                "arguments with TorusFlowLoop(mean=..., concentration=..., step_index=...)"
            )
    predictor = _Predictor(model, loop, inputs)
    arguments = predictor.example_arguments(inputs)
    batch = int(arguments["mean"].shape[0])
    with evaluation_mode(model):
        traced = trace(predictor, arguments, ("prediction",), batch, dynamic)
    check_finite(traced.weights)
    graph = traced.graph
    prediction = graph.output_nodes()["prediction"].meta["val"]
    mean = graph.node("mean").meta["val"]
    if tuple(prediction.shape) != tuple(mean.shape):
        raise InputModelError(
            f"model: returned shape {list(prediction.shape)} for a mean of {list(mean.shape)}, "
            "expected the same shape: an angle for each mean"
        )
    return _program(graph, traced.weights, loop, traced.notes)


class _Predictor(nn.Module):
    """The user's module, with one step number for the batch and float32 beliefs."""

    def __init__(self, module: nn.Module, loop: TorusFlowLoop, inputs: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        self.loop = loop
        self.dtype = inputs[loop.mean].dtype
        self.step_dtype = inputs[loop.step_index].dtype
        self.step_is_batched = inputs[loop.step_index].ndim > 0

    def example_arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `forward` that stand for the example inputs of the module."""
        loop = self.loop
        belief = (loop.mean, loop.concentration, loop.step_index)
        return {
            "mean": inputs[loop.mean].float(),
            "concentration": inputs[loop.concentration].float(),
            "step_index": torch.ones(()),
            **{name: item for name, item in inputs.items() if name not in belief},
        }

    def forward(
        self,
        mean: torch.Tensor,
        concentration: torch.Tensor,
        step_index: torch.Tensor,
        **given: Any,
    ) -> tuple[torch.Tensor]:
        loop = self.loop
        index = step_index.to(self.step_dtype)
        belief = {
            loop.mean: mean.to(self.dtype),
            loop.concentration: concentration.to(self.dtype),
            loop.step_index: index.expand(mean.shape[0]) if self.step_is_batched else index,
        }
        angles: torch.Tensor = self.module(**belief, **given)
        return (angles.float(),)


def build_belief_graph(denoiser: Graph, loop: TorusFlowLoop) -> Graph:
    """The graph that draws the next belief around a prediction.

    Inputs: prediction [B, ...], observation_noise [B, steps - 1, ...], accuracies [steps - 1].
    Outputs: mean and concentration of the belief, and the prediction as coordinates in [0, 1).
    """
    builder = Builder(fake_mode_of(denoiser))
    value = denoiser.output_nodes()["prediction"].meta["val"]
    count = loop.steps - 1
    noisy = builder.fake((value.shape[0], count, *value.shape[1:]), torch.float32)
    prediction = builder.input("prediction", value)
    noise = builder.input("observation_noise", noisy)
    row = builder.input("accuracies", builder.fake((count,), torch.float32))
    rank = noisy.ndim
    deviation = _deviations(builder, noise, count, rank)
    accuracy = builder.call(aten.view.default, row, [count] + [1] * (rank - 2))
    real, imaginary = (
        builder.call(
            aten.sum.dim_IntList,
            builder.call(aten.mul.Tensor, builder.call(wave, deviation), accuracy),
            [1],
        )
        for wave in (aten.cos.default, aten.sin.default)
    )
    concentration, turn = _polar(builder, real, imaginary)
    mean = _wrapped(builder, builder.call(aten.add.Tensor, prediction, turn))
    outputs = {
        "mean": mean,
        "concentration": concentration,
        "coordinates": _fractions(builder, prediction),
    }
    return builder.finish(outputs, denoiser.dimensions)


def _deviations(builder: Builder, noise: fx.Node, count: int, rank: int) -> fx.Node:
    """u_j = g_j(z_j) for [B, count, ...] noise: linear interpolation in the tables, odd in z."""
    table = builder.weight(
        QUANTILES_WEIGHT, builder.fake((count * (QUANTILE_POINTS - 1), 2), torch.float32)
    )
    size = builder.call(aten.abs.default, noise)
    cells = QUANTILE_POINTS - 1
    position = builder.call(aten.mul.Scalar, size, cells / LARGEST_DEVIATION)
    position = builder.call(aten.clamp.default, position, 0.0, float(cells))
    cell = builder.call(aten.floor.default, position)
    cell = builder.call(aten.clamp.default, cell, 0.0, float(cells - 1))
    share = builder.call(aten.sub.Tensor, position, cell)
    cell = builder.call(aten._to_copy.default, cell, dtype=torch.int64)
    first = builder.call(
        aten.arange.start_step, 0, count * cells, cells, dtype=torch.int64, device="cpu"
    )
    first = builder.call(aten.view.default, first, [count] + [1] * (rank - 2))
    entry = builder.call(aten.embedding.default, table, builder.call(aten.add.Tensor, cell, first))
    low = builder.call(aten.select.int, entry, rank, 0)
    rise = builder.call(aten.select.int, entry, rank, 1)
    found = builder.call(aten.add.Tensor, low, builder.call(aten.mul.Tensor, share, rise))
    return builder.call(aten.mul.Tensor, builder.call(aten.sign.default, noise), found)


def _polar(builder: Builder, real: fx.Node, imaginary: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Absolute value and angle in [-pi, pi]; angle 0 where both parts are 0.

    ONNX has no two-argument arctangent: atan2(y, x) = 2 atan(y / (r + |x|)) for x >= 0, and that
    from pi (or -pi) backwards for x < 0.
    """
    call = builder.call
    squares = [call(aten.mul.Tensor, part, part) for part in (real, imaginary)]
    radius = call(aten.sqrt.default, call(aten.add.Tensor, *squares))
    across = call(aten.add.Tensor, radius, call(aten.abs.default, real))
    across = call(aten.clamp.default, across, 1e-30)
    half = call(aten.atan.default, call(aten.div.Tensor, imaginary, across))
    acute = call(aten.mul.Scalar, half, 2.0)
    upper = call(aten.rsub.Scalar, acute, math.pi)
    lower = call(aten.rsub.Scalar, acute, -math.pi)
    above = call(aten.ge.Scalar, imaginary, 0.0)
    obtuse = call(aten.where.self, above, upper, lower)
    return radius, call(aten.where.self, call(aten.ge.Scalar, real, 0.0), acute, obtuse)


def _wrapped(builder: Builder, angle: fx.Node) -> fx.Node:
    """The same direction in [-pi, pi]."""
    turns = builder.call(aten.mul.Scalar, angle, 1 / (2 * math.pi))
    turns = builder.call(aten.round.default, turns)
    whole = builder.call(aten.mul.Scalar, turns, 2 * math.pi)
    return builder.call(aten.sub.Tensor, angle, whole)


def _fractions(builder: Builder, angle: fx.Node) -> fx.Node:
    """Angles as coordinates in [0, 1), -pi as 0."""
    share = builder.call(aten.mul.Scalar, angle, 1 / (2 * math.pi))
    share = builder.call(aten.add.Scalar, share, 0.5)
    part = builder.call(aten.sub.Tensor, share, builder.call(aten.floor.default, share))
    # A tiny negative share is 1.0 here in float32.
    inside = builder.call(aten.lt.Scalar, part, 1.0)
    return builder.call(aten.where.ScalarOther, inside, part, 0.0)


def quantile_table(loop: TorusFlowLoop) -> torch.Tensor:
    """Value and rise of each grid cell of g_1 … g_{steps-1}, [(steps - 1) * cells, 2], float32."""
    rows = np.stack([quantiles(alpha, QUANTILE_POINTS) for alpha in loop.accuracies()[:-1]])
    cells = np.stack([rows[:, :-1], np.diff(rows, axis=1)], axis=-1)
    return torch.from_numpy(cells.reshape(-1, 2).astype(np.float32))


def _program(
    graph: Graph, weights: dict[str, torch.Tensor], loop: TorusFlowLoop, notes: tuple[str, ...]
) -> Program:
    shape = dimensions_of(graph, graph.node("mean"))
    request = [name for name in graph.inputs if name not in ("mean", "concentration", "step_index")]
    predict = Call(
        graph="denoiser",
        inputs={
            "mean": Binding(source="state", name="mean"),
            "concentration": Binding(source="state", name="concentration"),
            "step_index": Binding(source="table", name="step_index"),
            **{name: Binding(source="request", name=name) for name in request},
        },
        outputs={"prediction": Destination(state="prediction")},
    )
    draw = Call(
        graph="solver",
        inputs={
            "prediction": Binding(source="state", name="prediction"),
            "observation_noise": Binding(source="noise", name="observation_noise"),
            "accuracies": Binding(source="table", name="accuracies"),
        },
        outputs={
            name: Destination(state=name) for name in ("mean", "concentration", "coordinates")
        },
    )
    uniform = Noise(name="mean", dtype="float32", shape=shape, scale=UNIFORM_SCALE)
    observation = Noise(
        name="observation_noise",
        dtype="float32",
        shape=(shape[0], loop.steps - 1, *shape[1:]),
        steps=loop.steps,
    )
    slots = [Slot(name=name, dtype="float32", shape=shape) for name in draw.outputs]
    slots[0] = slots[0].model_copy(update={"initial": Binding(source="noise", name="mean")})
    fields = []
    for name in request:
        node = graph.node(name)
        dtype = DTYPE_NAMES[node.meta["val"].dtype]
        fields.append(Input(name=name, dtype=dtype, shape=dimensions_of(graph, node)))
    return Program(
        graphs={"denoiser": graph, "solver": build_belief_graph(graph, loop)},
        weights={**weights, QUANTILES_WEIGHT: quantile_table(loop)},
        loop=Loop(
            slots=(*slots, Slot(name="prediction", dtype="float32", shape=shape)),
            noise=(uniform, observation),
            body=(Repeat(steps=("step",) * loop.steps, bodies={"step": (predict, draw)}),),
            results={"coordinates": "coordinates"},
        ),
        tables={
            "step_index": np.arange(1, loop.steps + 1, dtype=np.float32),
            "accuracies": loop.observed().astype(np.float32),
        },
        signature=Signature(
            inputs=tuple(fields),
            dimensions={name: (1, MAX_BATCH) for name in graph.dimensions},
            outputs=("coordinates",),
        ),
        notes=notes,
    )

"""Captures a denoiser with a description of its loop as a program.

The captured program has two graphs, called in turn: "denoiser" gives the guided prediction at a
latent and a timestep, "solver" moves the latent. Guidance, dtype conversions and the choice of the
mean of learned-variance models are nodes of the denoiser graph.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from optimize.capture.check_model import check_finite
from optimize.capture.from_module import MAX_BATCH, evaluation_mode, prepare, trace
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.errors import InputModelError, NumericsError
from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.ir.solver_graph import solver_call, solver_graph, solver_noise, solver_slots
from optimize.ir.solver_step import captured_step
from optimize.ir.torch_engine import DTYPE_NAMES
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

Dimensions = tuple[int | str, ...]


def capture(
    model: Any,
    example_inputs: Mapping[str, Any] | None = None,
    *,
    loop: DenoiseLoop | None = None,
    dynamic: bool | None = None,
    allow_nonfinite: bool = False,
) -> Program:
    """Captures a denoiser module and its sampling loop.

    Args:
        model: takes a noisy latent, a time and conditioning; left exactly as it was.
        example_inputs: `forward`'s arguments by name; tensors whose first dimension equals the
            latent's are batched, complex ones become constants.
        loop: how the module is sampled; `DenoiseLoop()` by default.
        dynamic: whether the batch may vary: True requires it, False fixes it, None tries (and says
            so in `Program.notes` when the model fixes it).
        allow_nonfinite: accept NaN or Inf in the weights.
    Returns:
        A program that takes the conditioning arguments plus `seed` or `latent`, and returns
        {"latent": …} of the shape of the example latent.
    Raises:
        InputModelError: the model or the example inputs cannot be captured.
        NumericsError: NaN or Inf in the weights.
    """
    loop = DenoiseLoop() if loop is None else loop
    inputs = prepare(model, example_inputs)
    for role, name in (("latent", loop.latent), ("timestep", loop.timestep)):
        if not isinstance(inputs.get(name), torch.Tensor):
            raise InputModelError(
                f"loop: found no tensor {name!r} among example_inputs {sorted(inputs)}, expected "
                f"the {role}; name the argument with DenoiseLoop({role}=...)"
            )
    denoiser = GuidedDenoiser(model, loop, inputs)
    arguments = denoiser.example_arguments(inputs)
    batch = int(arguments["latent"].shape[0])
    with evaluation_mode(model):
        traced = trace(denoiser, arguments, ("prediction",), batch, dynamic)
    notes = list(traced.notes)
    try:
        check_finite(traced.weights)
    except NumericsError as error:
        if not allow_nonfinite:
            raise
        notes.append(f"accepted because of allow_nonfinite: {str(error).split(',')[0]}")
    graph = traced.graph
    prediction = graph.output_nodes()["prediction"].meta["val"]
    latent = graph.node("latent").meta["val"]
    if tuple(prediction.shape) != tuple(latent.shape):
        raise InputModelError(
            f"model: returned shape {list(prediction.shape)} for a latent of {list(latent.shape)}, "
            "expected the same shape, or twice the channels with learned_variance"
        )
    return _program(graph, traced.weights, loop, batch, tuple(notes))


class GuidedDenoiser(nn.Module):
    """The user's module with the loop's conventions: one time for the batch, guidance mixed."""

    def __init__(self, module: nn.Module, loop: DenoiseLoop, inputs: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        self.loop = loop
        latent = inputs[loop.latent]
        self.latent_dtype = latent.dtype
        self.state_dtype = torch.float64 if latent.dtype == torch.float64 else torch.float32
        self.time_dtype = inputs[loop.timestep].dtype
        self.time_is_batched = inputs[loop.timestep].ndim > 0
        # Decided here: comparing sizes while tracing would fix the batch.
        self.batched = {
            name
            for name, item in inputs.items()
            if isinstance(item, torch.Tensor) and item.ndim and item.shape[0] == latent.shape[0]
        }

    def example_arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `forward` that stand for the example inputs of the module."""
        loop = self.loop
        missing = [name for name in (*loop.unconditional, *loop.null_values) if name not in inputs]
        if missing:
            raise InputModelError(
                f"loop: found no argument {missing[0]!r} among example_inputs {sorted(inputs)}, "
                "which guidance should replace in its unconditional half"
            )
        arguments: dict[str, Any] = {
            "latent": inputs[loop.latent].to(self.state_dtype),
            "timestep": torch.zeros((), dtype=self.state_dtype),
        }
        for name, item in inputs.items():
            if name not in (loop.latent, loop.timestep):
                arguments[name] = item
        if loop.guided:
            arguments["guidance_scale"] = torch.zeros((), dtype=self.state_dtype)
            for name in loop.unconditional:
                arguments[f"negative_{name}"] = inputs[name]
        return arguments

    def forward(self, latent: torch.Tensor, timestep: torch.Tensor, **given: Any) -> Any:
        loop = self.loop
        batch = latent.shape[0]
        scale = given.pop("guidance_scale", None)
        halves = 1 if scale is None else 2
        time = timestep.to(self.time_dtype)
        if self.time_is_batched:
            time = time.expand(halves * batch)
        noisy = latent.to(self.latent_dtype)
        arguments = {
            name: item
            for name, item in given.items()
            if not (scale is not None and name.removeprefix("negative_") in loop.unconditional)
        }
        if scale is not None:
            noisy = torch.cat([noisy, noisy])
            for name, item in arguments.items():
                arguments[name] = self._doubled(name, item)
            for name in loop.unconditional:
                arguments[name] = torch.cat([given[f"negative_{name}"], given[name]])
        output = self.module(**{loop.latent: noisy, loop.timestep: time, **arguments})
        prediction = self._mean(_first_tensor(output), latent).to(self.state_dtype)
        if scale is not None:
            # Not `chunk`, which would fix the batch.
            unconditional, conditional = prediction[:batch], prediction[batch:]
            mixed = unconditional + scale * (conditional - unconditional)
            channels = loop.guided_channels
            if channels is not None:
                mixed = torch.cat([mixed[:, :channels], conditional[:, channels:]], dim=1)
            prediction = mixed
        return (prediction,)

    def _doubled(self, name: str, item: Any) -> Any:
        """A shared argument for both halves; null values fill the unconditional one."""
        if name not in self.batched:
            return item
        if name in self.loop.null_values:
            null = torch.full_like(item, self.loop.null_values[name])
            return torch.cat([null, item])
        return torch.cat([item, item])

    def _mean(self, output: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Drops the learned variance: the second half of the one dimension twice too long."""
        longer = [
            i
            for i in range(1, latent.ndim)
            if output.ndim == latent.ndim and output.shape[i] == 2 * latent.shape[i]
        ]
        learned = self.loop.learned_variance
        if learned is False or len(longer) != 1:
            return output
        return output.narrow(longer[0], 0, latent.shape[longer[0]])


def _first_tensor(output: Any) -> torch.Tensor:
    """The prediction in what a module returns: a tensor, a tuple, or an object with `sample`."""
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if isinstance(output, Mapping):
        output = next(iter(output.values()))
    output = getattr(output, "sample", output)
    if not isinstance(output, torch.Tensor):
        raise InputModelError(
            f"model: returned {type(output).__name__}, expected a tensor, a tuple that begins with "
            "one, or an object with a tensor `sample`"
        )
    return output


def dimensions_of(graph: Graph, node: Any) -> Dimensions:
    """The shape of a node with the names of the sizes a request decides."""
    names = {symbol: name for name, symbol in graph.dimensions.items()}
    result: list[int | str] = []
    for size in node.meta["val"].shape:
        if isinstance(size, int):
            result.append(size)
            continue
        expression = size.node.expr
        factor, symbol = expression.as_coeff_Mul()
        name = names[str(symbol)]
        result.append(name if factor == 1 else f"{int(factor)}*{name}")
    return tuple(result)


def _program(
    graph: Graph,
    weights: dict[str, torch.Tensor],
    loop: DenoiseLoop,
    batch: int,
    notes: tuple[str, ...],
) -> Program:
    levels = loop.levels()
    step = captured_step(loop)
    latent = graph.node("latent")
    shape, dtype = dimensions_of(graph, latent), DTYPE_NAMES[latent.meta["val"].dtype]
    request = [name for name in graph.inputs if name not in ("latent", "timestep")]
    inputs: dict[str, Binding] = {
        "latent": Binding(source="state", name="latent"),
        "timestep": Binding(source="table", name="timestep"),
        **{name: Binding(source="request", name=name) for name in request},
    }
    denoise = Call(
        graph="denoiser", inputs=inputs, outputs={"prediction": Destination(state="prediction")}
    )
    noise = Noise(name="latent", dtype=dtype, shape=shape, scale=levels.prior)
    start = Binding(source="noise", name="latent")
    state = Slot(name="latent", dtype=dtype, shape=shape, initial=start)
    prediction = Slot(name="prediction", dtype=dtype, shape=shape)
    body = (denoise, solver_call(step))
    return Program(
        graphs={"denoiser": graph, "solver": solver_graph(graph, step)},
        weights=weights,
        loop=Loop(
            slots=(state, prediction, *solver_slots(step, state)),
            noise=(noise, *solver_noise(step, state)),
            body=(Repeat(steps=("step",) * step.calls, bodies={"step": body}),),
            results={"latent": "latent"},
        ),
        tables={
            "timestep": step.levels.timestep.astype(dtype),
            **{name: table.astype(dtype) for name, table in step.tables.items()},
        },
        signature=_signature(graph, request, loop, batch),
        description=loop,
        notes=notes,
    )


def _signature(graph: Graph, request: list[str], loop: DenoiseLoop, batch: int) -> Signature:
    fields = []
    for name in request:
        node = graph.node(name)
        shape = dimensions_of(graph, node)
        dtype = DTYPE_NAMES[node.meta["val"].dtype]
        if name == "guidance_scale":
            scale = loop.guidance_scale
            fields.append(
                Input(name=name, dtype=dtype, shape=shape, default=scale, low=0.0, high=1000.0)
            )
        else:
            fields.append(Input(name=name, dtype=dtype, shape=shape))
    limits = {name: (1, MAX_BATCH) for name in graph.dimensions}
    return Signature(inputs=tuple(fields), dimensions=limits, outputs=("latent",))

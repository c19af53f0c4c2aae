"""Puts the graphs of a decoder and the loop that calls them together as a program."""

from collections.abc import Mapping
from typing import Literal

import torch

from optimize.capture.from_denoiser import dimensions_of
from optimize.capture.from_module import MAX_BATCH
from optimize.ir.decode import Decoding
from optimize.ir.graph import Graph
from optimize.ir.key_value_slots import CACHE
from optimize.ir.program import Program
from optimize.ir.torch_engine import DTYPE_NAMES
from optimize.runtime.loop import (
    Binding,
    Call,
    Destination,
    Dimension,
    Input,
    Loop,
    Noise,
    Repeat,
    Signature,
    Slot,
)

BATCH: tuple[Dimension, ...] = ("batch",)


def decode_program(
    graphs: Mapping[str, Graph],
    weights: Mapping[str, torch.Tensor],
    decoding: Decoding,
) -> Program:
    """The program whose graphs "vision", "prefill" and "decode" generate tokens.

    Every step of the loop is one token; the first is the prefill's. It ends when all samples are
    finished.
    """
    calls = {role: _call(role, graph) for role, graph in graphs.items()}
    first = tuple(calls[role] for role in ("vision", "prefill") if role in calls)
    steps = ("prefill",) + ("decode",) * (decoding.loop.max_new_tokens - 1)
    bodies = {"prefill": first, "decode": (calls["decode"],)}
    repeat = Repeat(
        steps=steps, bodies={name: bodies[name] for name in dict.fromkeys(steps)}, until="finished"
    )
    noise: tuple[Noise, ...] = ()
    if decoding.loop.sampling is not None:
        count = decoding.loop.max_new_tokens
        noise = (Noise(name="noise", dtype="float32", shape=BATCH, steps=count),)
    return Program(
        graphs=graphs,
        weights=weights,
        loop=Loop(
            slots=tuple(_slots(graphs)),
            noise=noise,
            body=(repeat,),
            results={"logits": "logits"},
        ),
        tables={},
        signature=_signature(graphs, decoding),
        decoding=decoding,
    )


REQUEST = (
    "input_ids",
    "lengths",
    "max_new_tokens",
    "pixel_values",
    "importance",
    "temperature",
    "top_p",
)
"""Inputs of graphs that a request gives."""


def _call(role: str, graph: Graph) -> Call:
    inputs: dict[str, Binding] = {}
    for name in graph.inputs:
        kind: Literal["request", "state", "noise"] = "state"
        if name in REQUEST:
            kind = "request"
        elif name == "noise":
            kind = "noise"
        inputs[name] = Binding(source=kind, name=name)
    outputs = {
        name: Destination(append=name) if name == "tokens" else Destination(state=name)
        for name in graph.outputs
    }
    return Call(graph=role, inputs=inputs, outputs=outputs)


def _slots(graphs: Mapping[str, Graph]) -> list[Slot]:
    """One slot per value that goes from graph to graph, or to the result."""
    slots: dict[str, Slot] = {}
    for graph in graphs.values():
        for name, node in graph.output_nodes().items():
            if name != "tokens" and name not in slots:
                slots[name] = Slot(
                    name=name,
                    dtype=DTYPE_NAMES[node.meta["val"].dtype],
                    shape=dimensions_of(graph, node),
                    in_place=CACHE.fullmatch(name) is not None,
                )
    return list(slots.values())


def _signature(graphs: Mapping[str, Graph], decoding: Decoding) -> Signature:
    loop = decoding.loop
    ranges: dict[str, dict[str, float | int | str]] = {
        "input_ids": {"low": 0.0, "high": decoding.vocabulary - 1.0},
        "importance": {"default": 0.0, "low": 0.0, "high": 1.0},
        "lengths": {"default": 0, "low": 0.0, "at_most": "prompt"},
        "max_new_tokens": {
            "default": loop.max_new_tokens,
            "low": 1.0,
            "high": float(loop.max_new_tokens),
        },
    }
    if loop.sampling is not None:
        ranges["temperature"] = {"default": loop.sampling.temperature, "low": 1e-3, "high": 100.0}
        ranges["top_p"] = {"default": loop.sampling.top_p, "low": 1e-6, "high": 1.0}
    fields: dict[str, Input] = {}
    dimensions: dict[str, tuple[int, int]] = {}
    for graph in graphs.values():
        for name in graph.inputs:
            if name in REQUEST and name not in fields:
                node = graph.node(name)
                fields[name] = Input(
                    name=name,
                    dtype=DTYPE_NAMES[node.meta["val"].dtype],
                    shape=dimensions_of(graph, node),
                    **ranges.get(name, {}),  # type: ignore[arg-type]
                )
        for name in graph.dimensions:
            dimensions[name] = (1, MAX_BATCH)
    dimensions["prompt"] = decoding.prompt_range
    return Signature(
        inputs=tuple(fields.values()), dimensions=dimensions, outputs=("tokens", "logits")
    )

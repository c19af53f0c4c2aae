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
    Input,
    Loop,
    Noise,
    Repeat,
    Signature,
    Slot,
)

BEFORE = ("vision", "prefill", "draft_prefill")
"""Roles of the graphs that run once, on the prompt, in order."""

DISTRIBUTIONS: dict[str, Literal["normal", "uniform"]] = {
    "noise": "normal",
    "uniforms": "uniform",
    "draft_uniforms": "uniform",
}
"""Inputs of graphs that are drawn at each step, and from which distribution."""

COUNTS = "emitted"
"""Output [B] of graphs whose tokens are [B, S]: how many of them count."""


def decode_program(
    graphs: Mapping[str, Graph],
    weights: Mapping[str, torch.Tensor],
    decoding: Decoding,
    each: str = "decode",
) -> Program:
    """The program whose graphs generate tokens: those of `BEFORE`, then the others in turns.

    The first step is the prefill. Each other step makes one token, or several where graphs have an
    output "emitted". The loop ends when all samples are finished.

    Args:
        graphs: role → graph; those that run at each step in their order.
        each: what the steps behind the prefill are called.
    """
    pad = decoding.loop.pad_token or 0
    calls = {role: _call(role, graph, pad) for role, graph in graphs.items()}
    bodies = {
        "prefill": tuple(calls[role] for role in BEFORE if role in calls),
        each: tuple(call for role, call in calls.items() if role not in BEFORE),
    }
    steps = ("prefill",) + (each,) * (decoding.loop.max_new_tokens - 1)
    repeat = Repeat(
        steps=steps, bodies={name: bodies[name] for name in dict.fromkeys(steps)}, until="finished"
    )
    noise = _noise(graphs, decoding.loop.max_new_tokens)
    signature = _signature(graphs, decoding)
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
        signature=signature,
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


RESULTS = ("tokens", "accepted")
"""Outputs of graphs that the result is made of, part by part."""


def _call(role: str, graph: Graph, pad_token: int) -> Call:
    inputs: dict[str, Binding] = {}
    for name in graph.inputs:
        kind: Literal["request", "state", "noise"] = "state"
        if name in REQUEST:
            kind = "request"
        elif name in DISTRIBUTIONS:
            kind = "noise"
        inputs[name] = Binding(source=kind, name=name)
    outputs = {name: _destination(graph, name, pad_token) for name in graph.outputs}
    return Call(graph=role, inputs=inputs, outputs=outputs)


def _destination(graph: Graph, name: str, pad_token: int) -> Destination:
    if name not in RESULTS:
        return Destination(state=name)
    if name == "tokens" and COUNTS in graph.outputs:
        return Destination(append=name, counts=COUNTS, fill=pad_token)
    return Destination(append=name)


def _noise(graphs: Mapping[str, Graph], steps: int) -> tuple[Noise, ...]:
    """What graphs draw at each step."""
    found: dict[str, Noise] = {}
    for graph in graphs.values():
        for name in graph.inputs:
            if name in DISTRIBUTIONS and name not in found:
                node = graph.node(name)
                found[name] = Noise(
                    name=name,
                    dtype=DTYPE_NAMES[node.meta["val"].dtype],
                    shape=dimensions_of(graph, node),
                    steps=steps,
                    distribution=DISTRIBUTIONS[name],
                )
    return tuple(found.values())


def _slots(graphs: Mapping[str, Graph]) -> list[Slot]:
    """One slot per value that goes from graph to graph, or to the result."""
    slots: dict[str, Slot] = {}
    for graph in graphs.values():
        for name, node in graph.output_nodes().items():
            if name not in RESULTS and name not in slots:
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
    if loop.sampling is not None and loop.sampling.top_p is not None:
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
    made = {name for graph in graphs.values() for name in graph.outputs}
    outputs = (*(name for name in RESULTS if name in made), "logits")
    return Signature(inputs=tuple(fields.values()), dimensions=dimensions, outputs=outputs)

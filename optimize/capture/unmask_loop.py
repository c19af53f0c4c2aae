"""Puts the graphs that fill in masked text and the loop that calls them together as a program."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from optimize.capture.from_denoiser import dimensions_of
from optimize.capture.from_module import MAX_BATCH
from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.ir.torch_engine import DTYPE_NAMES
from optimize.ir.unmask import Unmasking
from optimize.ir.unmask_graph import UnmaskGraphs
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

NOISE = ("uniforms", "keys", "time_uniforms", "candidate_uniforms", "choice_uniforms")
"""Inputs of graphs that are drawn at each call, uniform in (0, 1)."""

TABLES = ("block", "place", "reveal", "count", "masked_share", "threshold")
"""Inputs of graphs that have a row for each call."""

REQUEST = ("input_ids", "temperature", "top_p")
"""Inputs of graphs that a request gives."""

ENERGY = "energy"
"""Role and output of the graph that judges candidates."""

TEMPLATE = "template"
"""The request field for texts with some tokens given: what is masked in it is filled in."""


def unmask_program(
    denoiser: Graph,
    weights: Mapping[str, torch.Tensor],
    unmasking: Unmasking,
    energy: Graph | None = None,
) -> Program:
    """The program that fills in text with a captured denoiser.

    Args:
        denoiser: as `UnmaskGraphs` takes it.
        weights: of all graphs.
        unmasking: the loop, and what passes made of it.
        energy: what judges candidates where the loop resamples; it has the output `ENERGY` [B * k].
    """
    maker = UnmaskGraphs(denoiser, unmasking)
    tables = tables_of(unmasking)
    graphs = {"step": maker.step()}
    bodies: dict[str, tuple[str, ...]] = {"step": ("step",)}
    steps = ["step"] * len(tables["block"])
    if unmasking.resample is not None:
        low, high = unmasking.resample.window
        shares = tables["masked_share"]
        steps = ["resample" if low <= share <= high else "step" for share in shares.tolist()]
    if "resample" in steps:
        assert energy is not None
        propose = maker.propose()
        chosen = propose.output_nodes()["candidates"], energy.output_nodes()[ENERGY]
        resample = {"propose": propose, ENERGY: energy, "choose": maker.choose(*chosen)}
        bodies["resample"] = tuple(resample)
        graphs |= resample
        if "step" not in steps:
            del graphs["step"]
    calls = {role: _call(role, graph) for role, graph in graphs.items()}
    repeat = Repeat(
        steps=tuple(steps),
        bodies={name: tuple(calls[role] for role in bodies[name]) for name in dict.fromkeys(steps)},
        until="finished",
    )
    streams = any("emitted" in graph.outputs for graph in graphs.values())
    results = {"calls": "calls"} if streams else {"tokens": "text", "calls": "calls"}
    used = {name for graph in graphs.values() for name in graph.inputs}
    return Program(
        graphs=graphs,
        weights=weights,
        loop=Loop(
            slots=_slots(graphs),
            noise=_noise(graphs, len(steps)),
            body=(repeat,),
            results=results,
        ),
        tables={name: table for name, table in tables.items() if name in used},
        signature=_signature(graphs, unmasking),
        unmasking=unmasking,
        decoder=denoiser,
    )


def remade(
    program: Program, unmasking: Unmasking, energy: Graph | None = None, **more: Any
) -> Program:
    """A captured program with another loop around its denoiser, made anew.

    Args:
        unmasking: what a pass made of the loop.
        energy: as of `unmask_program`.
        more: further fields of the program that change.
    """
    assert program.decoder is not None
    made = unmask_program(program.decoder, program.weights, unmasking, energy)
    return replace(
        program,
        graphs=made.graphs,
        loop=made.loop,
        tables=made.tables,
        signature=made.signature,
        unmasking=unmasking,
        **more,
    )


def tables_of(unmasking: Unmasking) -> dict[str, NDArray[np.generic]]:
    """The numbers of every call: one row for each.

    `block` and `place` of the call within it; `masked_share` [calls] of the block before it, in
    (0, 1]; `reveal`, the chance with which a coin reveals a mask; `count`, how many are; and the
    `threshold` of a commit.
    """
    loop, each = unmasking.loop, unmasking.calls_per_block
    calls = each * loop.blocks
    numbers = np.arange(calls)
    place = numbers % each
    groups = np.asarray(unmasking.groups)
    if unmasking.first_hitting is not None:
        left = loop.block - np.concatenate([[0], np.cumsum(groups)[:-1]])
        share = left[place] / loop.block
    else:
        share = 1 - place / each
    tables: dict[str, NDArray[np.generic]] = {
        "block": numbers // each,
        "place": place,
        "masked_share": share.astype(np.float64),
        # 1 - s / t, of times in equal steps from 1 to 0.
        "reveal": 1 / (each - place).astype(np.float64),
        "count": groups[place],
    }
    if unmasking.commit is not None:
        thresholds = [unmasking.commit.threshold(call + 1, calls) for call in range(calls)]
        tables["threshold"] = np.asarray(thresholds, dtype=np.float32)
    return tables


def _call(role: str, graph: Graph) -> Call:
    inputs = {name: Binding(source=_source(name), name=name) for name in graph.inputs}
    outputs = {name: _destination(graph, name) for name in graph.outputs}
    return Call(graph=role, inputs=inputs, outputs=outputs)


def _source(name: str) -> Literal["request", "state", "table", "noise"]:
    if name in NOISE:
        return "noise"
    if name in TABLES:
        return "table"
    return "request" if name in REQUEST else "state"


def _destination(graph: Graph, name: str) -> Destination:
    if name == "tokens" and "emitted" in graph.outputs:
        return Destination(append=name, counts="emitted")
    return Destination(state=name)


def _slots(graphs: Mapping[str, Graph]) -> tuple[Slot, ...]:
    """One slot per value that goes from call to call, or to the result."""
    slots: dict[str, Slot] = {}
    for graph in graphs.values():
        for name, node in graph.output_nodes().items():
            if name == "tokens" or name in slots:
                continue
            start = Binding(source="request", name=TEMPLATE) if name == "text" else None
            slots[name] = Slot(
                name=name,
                dtype=DTYPE_NAMES[node.meta["val"].dtype],
                shape=dimensions_of(graph, node),
                initial=start,
            )
    return tuple(slots.values())


def _noise(graphs: Mapping[str, Graph], steps: int) -> tuple[Noise, ...]:
    found: dict[str, Noise] = {}
    for graph in graphs.values():
        for name in graph.inputs:
            if name in NOISE:
                shape = dimensions_of(graph, graph.node(name))
                found[name] = Noise(
                    name=name, dtype="float64", shape=shape, steps=steps, distribution="uniform"
                )
    return tuple(found.values())


def _signature(graphs: Mapping[str, Graph], unmasking: Unmasking) -> Signature:
    loop = unmasking.loop
    tokens = float(max(unmasking.vocabulary - 1, 0))
    sampling = loop.sampling
    fields = [
        Input(
            name=TEMPLATE,
            dtype="int64",
            shape=("batch", loop.length),
            default=loop.mask,
            low=0.0,
            high=max(tokens, float(loop.mask)),
        )
    ]
    dimensions = {"batch": (1, MAX_BATCH)}
    if loop.max_prompt:
        fields.append(
            Input(
                name="input_ids",
                dtype="int64",
                shape=("batch", "prompt"),
                low=0.0,
                # A prompt may have tokens that text may not, such as those around turns.
                high=unmasking.logits - 1.0,
                excluded=loop.mask,
            )
        )
        dimensions["prompt"] = (1, loop.max_prompt)
    if sampling is not None:
        fields.append(
            Input(
                name="temperature",
                dtype="float32",
                shape=(),
                default=sampling.temperature,
                low=1e-3,
                high=100.0,
            )
        )
        if sampling.top_p is not None:
            fields.append(
                Input(
                    name="top_p",
                    dtype="float32",
                    shape=(),
                    default=sampling.top_p,
                    low=1e-6,
                    high=1.0,
                )
            )
    return Signature(inputs=tuple(fields), dimensions=dimensions, outputs=("tokens", "calls"))

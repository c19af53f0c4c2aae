"""The ONNX graphs of a program and the weights file they point into, before anything is written."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx

from optimize.export.few_rows import has_few_rows
from optimize.export.int8 import placed, quantized
from optimize.export.loop_forms import as_onnx_loop
from optimize.export.to_onnx import OnnxGraph, graph_to_onnx, used_weights
from optimize.export.weights import Layout, layout_weights
from optimize.ir.errors import UnsupportedOpError
from optimize.ir.exporting import LoopForm
from optimize.ir.program import Program
from optimize.runtime.loop import Loop
from optimize.runtime.manifest import GRAPHS_FOLDER, GraphEntry
from optimize.runtime.onnx_operators import DOMAINS


@dataclass(frozen=True)
class OnnxGraphs:
    """What will be written.

    Attributes:
        graphs: role → model.
        layout: the weights file.
        loop: of the program, or with an ONNX `Loop` in the place of the repeat.
        few_rows: roles whose weights are worth repacking.
    """

    graphs: Mapping[str, OnnxGraph]
    layout: Layout
    loop: Loop
    few_rows: frozenset[str]

    def files(self) -> dict[str, str]:
        """Role → path in the bundle."""
        return {role: f"{GRAPHS_FOLDER}/{role}.onnx" for role in sorted(self.graphs)}

    def entries(self) -> dict[str, GraphEntry]:
        """Role → what the manifest says of it."""
        return {
            role: GraphEntry(
                file=name,
                inputs=dict(self.graphs[role].inputs),
                outputs=dict(self.graphs[role].outputs),
                few_rows=role in self.few_rows,
            )
            for role, name in self.files().items()
        }

    def nodes(self) -> dict[str, dict[str, int]]:
        """Role → op → how many nodes, the most frequent first."""
        return {
            role: dict(_count(graph.model.graph).most_common())
            for role, graph in sorted(self.graphs.items())
        }


def onnx_graphs(program: Program, form: LoopForm, int8: bool) -> OnnxGraphs:
    """Translates all graphs of a program.

    Args:
        program: in the form that the loop is to have, see `loop_forms.in_form`.
        form: "onnx_loop" puts the one graph of a step into a `Loop`.
        int8: quantise products of weights.
    Raises:
        UnsupportedOpError: an op has no ONNX lowering.
    """
    used = [name for graph in program.graphs.values() for name in used_weights(graph)]
    layout = layout_weights(program.weights, used)
    graphs = {
        role: graph_to_onnx(graph, role, layout.places) for role, graph in program.graphs.items()
    }
    few = frozenset(role for role, graph in program.graphs.items() if has_few_rows(graph))
    if int8:
        graphs, layout = _in_int8(graphs, layout)
        # ONNX Runtime's int8 products are fast on repacked weights only.
        few = frozenset(graphs)
    loop = program.loop
    if form == "onnx_loop":
        looped = as_onnx_loop(program, graphs)
        graphs[looped.name] = looped.graph
        loop = looped.loop
    for role, item in graphs.items():
        _check_operators(item.model.graph, role)
    return OnnxGraphs(graphs, layout, loop, few)


def _check_operators(graph: onnx.GraphProto, role: str) -> None:
    """Refuses to write what no reader would load."""
    for node in graph.node:
        if node.op_type not in DOMAINS.get(node.domain, {}):
            raise UnsupportedOpError(
                f"{role}: found ONNX operator {node.domain or 'ai.onnx'}.{node.op_type} at node "
                f"{node.name}, which bundles may not hold; give the op a lowering to those of "
                "optimize.runtime.onnx_operators"
            )
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _check_operators(attribute.g, role)


def _in_int8(
    graphs: Mapping[str, OnnxGraph], layout: Layout
) -> tuple[dict[str, OnnxGraph], Layout]:
    by_place = {place.name: place for place in layout.places.values()}
    tensors = dict(zip(layout.names, layout.tensors, strict=True))
    made: dict[str, onnx.ModelProto] = {}
    kept: dict[str, Any] = {}
    for role, graph in sorted(graphs.items()):
        model, outside = quantized(graph.model, tensors, role)
        made[role] = model
        # What is no weight of the program any more is made of one, so equal names are equal.
        kept |= {name: tensors[name] if name in by_place else it for name, it in outside.items()}
    small = layout_weights(kept, kept)
    return {
        role: replace(graphs[role], model=placed(model, small.places))
        for role, model in made.items()
    }, small


def _count(graph: onnx.GraphProto) -> Counter[str]:
    """How many nodes of each op a graph has, those of inner graphs among them."""
    counts: Counter[str] = Counter()
    for node in graph.node:
        counts[node.op_type] += 1
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                counts += _count(attribute.g)
    return counts

"""Makes bfloat16 graphs run where ONNX Runtime lacks bfloat16 kernels, as it does on a CPU.

    y = Gemm(x, w)              bfloat16
    ───▶
    y = Cast(Gemm(Cast(x, float32), Cast(w, float32)), bfloat16)

Values between nodes stay bfloat16 and are rounded after every op, as PyTorch does on a CPU. Weights
stay bfloat16 in the file.
"""

from collections.abc import Iterable

import onnx
from onnx import TensorProto, helper

MOVES = frozenset(
    {"Cast", "Concat", "Gather", "GatherElements", "Identity", "Reshape", "ScatterND", "Shape",
     "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)  # fmt: skip
"""Ops that only move numbers; they have kernels for every type (tried with ONNX Runtime 1.32)."""


def compute_in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with casts around every op that computes with bfloat16; itself when none does."""
    if not _mentions_bfloat16(model.graph):
        return model
    narrow = _bfloat16_values(model)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    widened: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in MOVES or not narrow & {*node.input, *node.output}:
            changed.graph.node.append(node)
            continue
        wide = onnx.NodeProto()
        wide.CopyFrom(node)
        for position, name in enumerate(node.input):
            if name in narrow:
                if name not in widened:
                    widened[name] = f"{name}_float32"
                    changed.graph.node.append(_cast(name, widened[name], TensorProto.FLOAT))
                wide.input[position] = widened[name]
        rounded = []
        for position, name in enumerate(node.output):
            if name in narrow:
                wide.output[position] = f"{name}_exact"
                rounded.append(_cast(f"{name}_exact", name, TensorProto.BFLOAT16))
        changed.graph.node.extend([wide, *rounded])
    return changed


def _cast(source: str, result: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"Cast_{result}", to=to)


def _mentions_bfloat16(graph: onnx.GraphProto) -> bool:
    types: Iterable[int] = (
        *(tensor.data_type for tensor in graph.initializer),
        *(item.type.tensor_type.elem_type for item in graph.input),
        *(
            attribute.i
            for node in graph.node
            if node.op_type == "Cast"
            for attribute in node.attribute
        ),
    )
    return TensorProto.BFLOAT16 in types


def _bfloat16_values(model: onnx.ModelProto) -> set[str]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    typed = (*graph.input, *graph.output, *graph.value_info)
    narrow = {v.name for v in typed if v.type.tensor_type.elem_type == TensorProto.BFLOAT16}
    narrow |= {t.name for t in graph.initializer if t.data_type == TensorProto.BFLOAT16}
    return narrow

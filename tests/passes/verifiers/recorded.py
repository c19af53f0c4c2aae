"""A function of tensors as a graph with a symbolic batch, run by PyTorch and by ONNX Runtime."""

import onnxruntime as ort
import torch
from torch import nn

from optimize.capture.from_module import trace
from optimize.export.to_onnx import graph_to_onnx
from optimize.ir.builder import builder_with_inputs
from optimize.ir.recording import record


class _Inputs(nn.Module):
    def forward(self, **tensors):
        return tuple(tensor + 0 for tensor in tensors.values())


def recorded(function, tensors, outputs):
    """`function(**tensors)` recorded; returns what computes it by PyTorch and by ONNX Runtime.

    Every tensor has the batch as its first dimension, and more than one sample.
    """
    batch = next(iter(tensors.values())).shape[0]
    traced = trace(_Inputs(), tensors, tuple(f"{name}_out" for name in tensors), batch, True)
    builder, inputs = builder_with_inputs(traced.graph)
    names = list(tensors)
    results = record(
        builder,
        lambda *values: function(**dict(zip(names, values, strict=True))),
        *(inputs[name] for name in names),
    )
    graph = builder.finish(dict(zip(outputs, results, strict=True)), traced.graph.dimensions)
    onnx = graph_to_onnx(graph, "recorded", {})
    session = ort.InferenceSession(onnx.model.SerializeToString())

    def by_torch(given):
        return graph.module(*(given[name] for name in graph.inputs))

    def by_onnx_runtime(given):
        feeds = {onnx.inputs[name]: given[name].numpy() for name in graph.inputs}
        found = session.run([onnx.outputs[name] for name in outputs], feeds)
        return tuple(map(torch.from_numpy, found))

    return by_torch, by_onnx_runtime

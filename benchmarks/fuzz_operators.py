"""Graphs of one operator each, from ONNX's own test cases, to be damaged.

The inputs of a test case become constants of the graph, so that ONNX Runtime computes the operator
while it loads the graph, where that is allowed.
"""

import warnings
from random import Random
from typing import Any

import numpy as np
import onnx
from fuzz_mutations import damaged_graph
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from optimize.runtime.manifest import GraphEntry
from optimize.runtime.onnx_engine import OnnxEngine, OnnxGraphs

MAX_MODEL_BYTES = 20_000


def operator_models() -> list[bytes]:
    """The test cases that take tensors only, smallest first."""
    models = []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    for case in cases:
        if case.model is None or not case.data_sets:
            continue
        raw = _closed(case.model, case.data_sets[0][0])
        if raw is not None and len(raw) <= MAX_MODEL_BYTES:
            models.append(raw)
    return sorted(models, key=lambda raw: (len(raw), raw))


def _closed(model: Any, values: Any) -> bytes | None:
    """The model with its inputs as initializers, None where one is no plain tensor."""
    closed = onnx.ModelProto()
    closed.CopyFrom(model)
    closed.ir_version = min(closed.ir_version, 11)
    del closed.graph.input[:]
    for info, value in zip(model.graph.input, values, strict=False):
        if not isinstance(value, np.ndarray | np.generic):
            return None
        tensor = numpy_helper.from_array(np.asarray(value), info.name)
        tensor.data_type = info.type.tensor_type.elem_type
        closed.graph.initializer.append(tensor)
    return bytes(closed.SerializeToString())


def make_operator(models: list[bytes], index: int, chance: Random) -> tuple[bytes, str]:
    """A damaged graph, and the operator it was made from."""
    raw = models[index % len(models)]
    name = onnx.ModelProto.FromString(raw).graph.node[0].op_type
    return damaged_graph(raw, chance), name


def feed_operator(content: bytes) -> None:
    """Loads a graph as a bundle would, and computes it."""
    names = _output_names(content)
    outputs = {f"output{number}": name for number, name in enumerate(names)}
    entry = {"g": GraphEntry(file="g.onnx", inputs={}, outputs=outputs)}
    graphs = OnnxGraphs({"g": content}, entry, {}, threads=1)
    OnnxEngine(graphs).run("g", {}, dict.fromkeys(outputs))


def _output_names(content: bytes) -> list[str]:
    try:
        outputs = onnx.ModelProto.FromString(content).graph.output
        return [str(item.name) for item in outputs]
    except DecodeError:
        return []

"""ONNX graphs whose matrix products of weights run in int8, quantised by ONNX Runtime's own tools.

Weights become int8 with one scale per output channel, once; activations become uint8 with a scale
found at each call. Only graphs for CPUs gain from it: their int8 instructions do the products.
"""

import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from optimize.ir.errors import UnsupportedOpError

MAX_PROTOBUF = 2**31 - 2**20
"""Bytes of a graph with its weights inside that the quantiser can read."""

OUTSIDE_BYTES = 1024
"""Initializers of this size go into the weights file."""


def quantized(
    model: onnx.ModelProto, tensors: Mapping[str, torch.Tensor], role: str
) -> tuple[onnx.ModelProto, dict[str, torch.Tensor]]:
    """A graph in int8, and the tensors that its external initializers stand for.

    Args:
        model: its external initializers are among `tensors`.
        tensors: initializer name → value.
        role: of the graph, for messages.
    Raises:
        UnsupportedOpError: the graph is too large, or ONNX Runtime cannot quantise it.
    """
    whole = _with_weights(model, tensors, role)
    # It takes seconds to import, and logs advice about calibration that does not apply here.
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        try:
            with _without_advice():
                quantize_dynamic(
                    whole,
                    path,
                    op_types_to_quantize=["MatMul"],
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                    extra_options={"MatMulConstBOnly": True},
                )
        except Exception as error:
            raise UnsupportedOpError(
                f"{role}: ONNX Runtime cannot quantise this graph: {error}; leave it in float32"
            ) from error
        made = onnx.load(path)
    inside = {item.name for item in model.graph.initializer if not _outside(item)}
    return _without_weights(made, inside)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keeps the quantiser's advice to prepare graphs off the root logger: ours are prepared."""

    def wanted(record: logging.LogRecord) -> bool:
        return "pre-processing before" not in str(record.msg)

    root = logging.getLogger()
    root.addFilter(wanted)
    try:
        yield
    finally:
        root.removeFilter(wanted)


def _with_weights(
    model: onnx.ModelProto, tensors: Mapping[str, torch.Tensor], role: str
) -> onnx.ModelProto:
    size = sum(tensors[item.name].nbytes for item in model.graph.initializer if _outside(item))
    if size > MAX_PROTOBUF:
        raise UnsupportedOpError(
            f"{role}: found {size} bytes of weights in one graph, expected at most {MAX_PROTOBUF} "
            "for int8; leave it in float32"
        )
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for item in whole.graph.initializer:
        if _outside(item):
            array = tensors[item.name].detach().cpu().contiguous().numpy()
            item.CopyFrom(numpy_helper.from_array(array, item.name))
    return whole


def _outside(item: Any) -> bool:
    return bool(item.data_location == TensorProto.EXTERNAL)


def _without_weights(
    model: onnx.ModelProto, inside: Collection[str]
) -> tuple[onnx.ModelProto, dict[str, torch.Tensor]]:
    """Weights and what was made of them are taken out; where they lie is filled in by `placed`.

    The graph's own constants stay `inside`: another graph may have others of the same name.
    """
    tensors: dict[str, torch.Tensor] = {}
    for item in model.graph.initializer:
        array = numpy_helper.to_array(item)
        if item.name not in inside and array.nbytes >= OUTSIDE_BYTES:
            tensors[item.name] = torch.from_numpy(np.array(array))
            item.ClearField("raw_data")
            item.data_location = TensorProto.EXTERNAL
    return model, tensors


def placed(model: onnx.ModelProto, places: Mapping[str, Any]) -> onnx.ModelProto:
    """The graph with each external initializer pointing to its place in the weights file."""
    for item in model.graph.initializer:
        if _outside(item):
            place = places[item.name]
            del item.external_data[:]
            for key, number in (
                ("location", place.file),
                ("offset", place.offset),
                ("length", place.length),
            ):
                item.external_data.add(key=key, value=str(number))
    return model

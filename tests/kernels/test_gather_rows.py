"""gather_rows: against the reference, under tracing, and in ONNX Runtime."""

import numpy as np
import onnxruntime as ort
import pytest
import torch

from optimize.capture.from_module import trace
from optimize.export.to_onnx import graph_to_onnx
from optimize.kernels.gather_rows import gather_rows
from optimize.kernels.gather_rows.reference import reference

CASES = [
    ((3, 5, 4), 1, 2),
    ((3, 2, 5, 4), 2, 5),
    ((1, 2, 5, 4), 2, 3),
    ((3, 5), 1, 1),
    ((3, 2, 5, 4), 1, 2),
    ((3, 2, 5, 4), 3, 2),
    ((1, 7, 4), -2, 3),
    ((3, 2, 63, 8), 2, 1),
    ((3, 2, 65, 8), -2, 64),
    ((3, 1, 1, 8), 2, 1),
]


def _case(shape, dim, count, batch=3):
    torch.manual_seed(0)
    rows = shape[dim]
    index = torch.stack([torch.randperm(rows)[:count] for _ in range(batch)])
    return torch.randn(shape), index


@pytest.mark.parametrize(("shape", "dim", "count"), CASES, ids=str)
def test_matches_the_reference(shape, dim, count):
    x, index = _case(shape, dim, count)
    assert torch.equal(gather_rows(x, index, dim), reference(x, index, dim % x.dim()))


def test_repeated_indices_repeat_rows():
    x = torch.arange(12.0).reshape(2, 3, 2)
    index = torch.tensor([[1, 1], [2, 0]])
    assert gather_rows(x, index, 1).tolist() == [[[2, 3], [2, 3]], [[10, 11], [6, 7]]]


def test_opcheck():
    x, index = _case((3, 2, 5, 4), 2, 3)
    torch.library.opcheck(gather_rows, (x, index, 2))


@pytest.mark.parametrize(
    ("index", "dim", "message"),
    [
        (torch.zeros(2, 1, dtype=torch.int32), 1, "expected \\[B, M\\] int64"),
        (torch.zeros(2, dtype=torch.int64), 1, "expected \\[B, M\\] int64"),
        (torch.zeros(2, 1, dtype=torch.int64), 0, "after the batch dimension"),
        (torch.zeros(2, 1, dtype=torch.int64), 3, "after the batch dimension"),
    ],
)
def test_refuses_wrong_arguments(index, dim, message):
    with pytest.raises(ValueError, match=message):
        gather_rows(torch.zeros(2, 3, 4), index, dim)


class _Gather(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, x, index):
        return gather_rows(x * 1.0, index, self.dim)


@pytest.mark.parametrize(("shape", "dim", "count"), CASES, ids=str)
def test_onnx_lowering_equals_the_op_for_any_batch(shape, dim, count):
    x, index = _case(shape, dim, count)
    traced = trace(_Gather(dim), {"x": x, "index": index}, ("rows",), 3, True)
    model = graph_to_onnx(traced.graph, "gather", {}).model
    assert not {"GatherElements", "ScatterElements"} & {node.op_type for node in model.graph.node}
    session = ort.InferenceSession(model.SerializeToString())
    for batch in (1, 3, 4):
        size = (batch if shape[0] == 3 else 1, *shape[1:])
        x, index = _case(size, dim, count, batch)
        (found,) = session.run(None, {"x": x.numpy(), "index": index.numpy()})
        np.testing.assert_array_equal(found, reference(x, index, dim % x.dim()).numpy())


def test_layers_with_one_index_share_its_arithmetic():
    class Twice(torch.nn.Module):
        def forward(self, x, y, index):
            return gather_rows(x, index, 2) + gather_rows(y, index, 2)

    x, index = _case((3, 2, 5, 4), 2, 3)
    traced = trace(Twice(), {"x": x, "y": x, "index": index}, ("rows",), 3, True)
    ops = [node.op_type for node in graph_to_onnx(traced.graph, "g", {}).model.graph.node]
    assert ops.count("Gather") == 2
    assert ops.count("Range") == 1

"""scatter_rows: against the reference, under tracing, and in ONNX Runtime."""

import numpy as np
import onnxruntime as ort
import pytest
import torch

from optimize.capture.from_module import trace
from optimize.export.to_onnx import graph_to_onnx
from optimize.kernels.scatter_rows import scatter_rows
from optimize.kernels.scatter_rows.reference import reference

CASES = [
    ((3, 5, 4), 1, 2),
    ((3, 2, 5, 4), 2, 5),
    ((3, 5), 1, 1),
    ((3, 2, 5, 4), 1, 2),
    ((3, 2, 5, 4), 3, 2),
    ((3, 7, 4), -2, 3),
    ((3, 2, 63, 8), 2, 1),
    ((3, 2, 65, 8), -2, 64),
]


def _case(shape, dim, count):
    torch.manual_seed(0)
    index = torch.stack([torch.randperm(shape[dim])[:count] for _ in range(shape[0])])
    size = list(shape)
    size[dim] = count
    return torch.randn(shape), index, torch.randn(size)


@pytest.mark.parametrize(("shape", "dim", "count"), CASES, ids=str)
def test_matches_the_reference_and_leaves_the_cache(shape, dim, count):
    cache, index, rows = _case(shape, dim, count)
    before = cache.clone()
    assert torch.equal(scatter_rows(cache, index, rows, dim), reference(cache, index, rows, dim))
    assert torch.equal(cache, before)


def test_opcheck():
    cache, index, rows = _case((3, 2, 5, 4), 2, 3)
    torch.library.opcheck(scatter_rows, (cache, index, rows, 2))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(2, 2, 4), "found rows of shape \\[2, 2, 4\\], expected \\[2, 1, 4\\]"),
        (torch.zeros(2, 4), "expected rank 3"),
        (torch.zeros(2, 1, 4, dtype=torch.float64), "dtype torch.float32 as the cache has"),
    ],
)
def test_refuses_rows_that_do_not_fit(rows, message):
    index = torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        scatter_rows(torch.zeros(2, 3, 4), index, rows, 1)


class _Scatter(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, cache, index, rows):
        return scatter_rows(cache, index, rows, self.dim)


@pytest.mark.parametrize(("shape", "dim", "count"), CASES, ids=str)
def test_onnx_lowering_equals_the_op_for_any_batch(shape, dim, count):
    names = ("cache", "index", "rows")
    case = _case(shape, dim, count)
    traced = trace(_Scatter(dim), dict(zip(names, case, strict=True)), ("out",), 3, True)
    model = graph_to_onnx(traced.graph, "scatter", {}).model
    assert "ScatterElements" not in {node.op_type for node in model.graph.node}
    session = ort.InferenceSession(model.SerializeToString())
    for batch in (1, 3, 4):
        case = _case((batch, *shape[1:]), dim, count)
        feeds = {name: item.numpy() for name, item in zip(names, case, strict=True)}
        (found,) = session.run(None, feeds)
        np.testing.assert_array_equal(found, reference(*case, dim).numpy())


def test_the_cache_enters_the_scatter_as_it_is_and_leaves_as_the_output():
    """Only then can ONNX Runtime update a cache in place."""
    cache, index, rows = _case((3, 2, 5, 4), 2, 3)
    arguments = {"cache": cache, "index": index, "rows": rows}
    traced = trace(_Scatter(2), arguments, ("out",), 3, True)
    graph = graph_to_onnx(traced.graph, "scatter", {}).model.graph
    (scatter,) = [node for node in graph.node if node.op_type == "ScatterND"]
    assert scatter.input[0] == "cache"
    assert scatter.output[0] == "out"

"""cached_attention: against the reference, under tracing, and in ONNX Runtime."""

import numpy as np
import onnxruntime as ort
import pytest
import torch

from optimize.capture.from_module import trace
from optimize.export.to_onnx import graph_to_onnx
from optimize.kernels.cached_attention import cached_attention
from optimize.kernels.cached_attention.reference import reference

NAMES = ("query", "key", "value", "key_cache", "value_cache", "lengths")
CASES = [
    (4, 4, 1, 16, 5),
    (4, 2, 1, 8, 63),
    (4, 1, 3, 24, 64),
    (6, 3, 2, 16, 65),
    (2, 2, 1, 32, 1000),
    (4, 2, 1, 4, 9),
]
"""Query heads, key heads, new rows, head dimension, cache rows."""


def _case(heads, groups, count, width, capacity, batch=3, dtype=torch.float32):
    torch.manual_seed(0)
    lengths = torch.linspace(0, capacity - count, batch).long()
    return (
        torch.randn(batch, heads, count, width, dtype=dtype),
        torch.randn(batch, groups, count, width, dtype=dtype),
        torch.randn(batch, groups, count, width, dtype=dtype),
        torch.randn(batch, groups, capacity, width, dtype=dtype),
        torch.randn(batch, groups, capacity, width, dtype=dtype),
        lengths,
    )


@pytest.mark.parametrize("sizes", CASES, ids=str)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_matches_the_reference_and_leaves_the_caches(sizes, scale):
    case = _case(*sizes, dtype=torch.float64)
    before = [item.clone() for item in case]
    found, expected = cached_attention(*case, scale), reference(*case, scale)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(case, before, strict=True))


def test_rows_behind_the_length_are_not_read():
    case = _case(4, 2, 1, 16, 9)
    spoiled = list(case)
    spoiled[3], spoiled[4] = case[3].clone(), case[4].clone()
    for sample, length in enumerate(case[5].tolist()):
        spoiled[3][sample, :, length:] = float("nan")
        spoiled[4][sample, :, length:] = 1e30
    spoiled[3] = spoiled[3].nan_to_num(1e30)
    torch.testing.assert_close(cached_attention(*spoiled)[0], cached_attention(*case)[0])


TREE = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]).bool()
"""Two branches behind the first row, one of them of two rows."""


def test_rows_see_what_they_are_told():
    case = _case(4, 2, 4, 8, 20, dtype=torch.float64)
    found, expected = cached_attention(*case, 0.5, TREE), reference(*case, 0.5, TREE)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    causal = torch.ones(4, 4).tril().bool()
    assert torch.equal(cached_attention(*case, 0.5, causal)[0], cached_attention(*case, 0.5)[0])
    assert not torch.allclose(found[0], cached_attention(*case, 0.5)[0])


def test_opcheck():
    torch.library.opcheck(cached_attention, (*_case(4, 2, 4, 8, 9), None, TREE))
    torch.library.opcheck(cached_attention, _case(4, 2, 2, 8, 7))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"lengths": torch.tensor([0, 1, 5])},
            "found 6 rows with the new ones, expected at most 5",
        ),
        ({"lengths": torch.zeros(3)}, "expected \\[B\\] int64"),
        ({"key": torch.zeros(3, 3, 1, 16)}, "G a divisor of the query heads"),
        ({"value_cache": torch.zeros(3, 2, 4, 16)}, "found value_cache of shape \\[3, 2, 4, 16\\]"),
        ({"value": torch.zeros(3, 2, 1, 16).double()}, "found value of dtype torch.float64"),
        ({"query": torch.zeros(3, 4, 16)}, "expected \\[B, N, S, D\\]"),
        ({"sees": torch.ones(2, 2).bool()}, "expected \\[1, 1\\] bool"),
        ({"query": torch.zeros(3, 4, 2, 16)}, "found 1 new keys for 2 rows"),
    ],
)
def test_refuses_what_does_not_fit(changed, message):
    case = dict(zip(NAMES, _case(4, 2, 1, 16, 5), strict=True)) | changed
    with pytest.raises(ValueError, match=message):
        cached_attention(**case)


class _Attend(torch.nn.Module):
    def forward(self, **case):
        return cached_attention(**case, scale=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_onnx_lowering_equals_the_op_for_any_batch(sizes, dtype):
    case = _case(*sizes, dtype=dtype)
    arguments = dict(zip(NAMES, case, strict=True))
    traced = trace(_Attend(), arguments, ("out", "keys", "values"), 3, True)
    model = graph_to_onnx(traced.graph, "attend", {}).model
    session = ort.InferenceSession(model.SerializeToString())
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-12, torch.float16: 4e-3}[dtype]
    for batch in (1, 3, 4):
        case = _case(*sizes, batch=batch, dtype=dtype)
        feeds = {name: item.numpy() for name, item in zip(NAMES, case, strict=True)}
        found = session.run(None, feeds)
        wide = [item.double() if item.is_floating_point() else item for item in case]
        expected = reference(*wide, 0.3)
        np.testing.assert_allclose(found[0], expected[0].numpy(), rtol=tolerance, atol=tolerance)
        for sample, length in enumerate(case[5].tolist()):
            end = length + sizes[2]
            for ours, theirs in zip(found[1:], expected[1:], strict=True):
                np.testing.assert_array_equal(ours[sample, :, :end], theirs[sample, :, :end])


class _AttendTree(torch.nn.Module):
    def forward(self, **case):
        return cached_attention(**case, scale=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_onnx_lowering_of_a_tree(dtype):
    names = (*NAMES, "sees")
    arguments = dict(zip(names, (*_case(4, 2, 4, 8, 20, dtype=dtype), TREE), strict=True))
    traced = trace(_AttendTree(), arguments, ("out", "keys", "values"), 3, True)
    model = graph_to_onnx(traced.graph, "attend", {}).model
    session = ort.InferenceSession(model.SerializeToString())
    for batch in (1, 4):
        case = (*_case(4, 2, 4, 8, 20, batch=batch, dtype=dtype), TREE)
        feeds = {name: item.numpy() for name, item in zip(names, case, strict=True)}
        wide = [item.double() if item.is_floating_point() else item for item in case[:-1]]
        expected = reference(*wide, 0.3, TREE)
        tolerance = 2e-6 if dtype == torch.float32 else 1e-12
        found = session.run(None, feeds)[0]
        np.testing.assert_allclose(found, expected[0].numpy(), rtol=tolerance, atol=tolerance)

"""tree_attention: against the reference, under tracing, and in ONNX Runtime."""

import numpy as np
import onnxruntime as ort
import pytest
import torch

from optimize.capture.from_module import trace
from optimize.export.to_onnx import graph_to_onnx
from optimize.kernels.tree_attention import tree_attention
from optimize.kernels.tree_attention.reference import reference

NAMES = ("query", "key", "value", "key_cache", "value_cache", "lengths", "sees")
CASES = [(4, 4, 1, 3, 16, 5), (4, 2, 3, 3, 8, 64), (6, 3, 2, 7, 16, 33), (4, 1, 5, 9, 24, 12)]
"""Query heads, key heads, rows, further rows, head dimension, cache rows."""


def _case(heads, groups, count, total, width, capacity, batch=3, dtype=torch.float32):
    torch.manual_seed(0)
    sees = torch.rand(count, total) < 0.5
    sees[:, -1] = True
    return (
        torch.randn(batch, heads, count, width, dtype=dtype),
        torch.randn(batch, groups, total, width, dtype=dtype),
        torch.randn(batch, groups, total, width, dtype=dtype),
        torch.randn(batch, groups, capacity, width, dtype=dtype),
        torch.randn(batch, groups, capacity, width, dtype=dtype),
        torch.linspace(0, capacity, batch).long(),
        sees,
    )


@pytest.mark.parametrize("sizes", CASES, ids=str)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_matches_the_reference(sizes, scale):
    case = _case(*sizes, dtype=torch.float64)
    found, expected = tree_attention(*case, scale), reference(*case, scale)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_rows_behind_the_length_are_not_read():
    case = list(_case(4, 2, 3, 5, 16, 9))
    expected = tree_attention(*case)
    for sample, length in enumerate(case[5].tolist()):
        case[3][sample, :, length:] = 1e30
    assert torch.equal(tree_attention(*case), expected)


def test_opcheck():
    torch.library.opcheck(tree_attention, _case(4, 2, 2, 3, 8, 7))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sees": torch.ones(3, 4).bool()}, "expected \\[3, 5\\] bool"),
        ({"sees": torch.ones(3, 5)}, "dtype torch.float32, expected \\[3, 5\\] bool"),
        ({"lengths": torch.zeros(3)}, "tree_attention: found lengths"),
        ({"key": torch.zeros(3, 3, 5, 16)}, "G a divisor of the query heads"),
    ],
)
def test_refuses_what_does_not_fit(changed, message):
    case = dict(zip(NAMES, _case(4, 2, 3, 5, 16, 9), strict=True)) | changed
    with pytest.raises(ValueError, match=message):
        tree_attention(**case)


class _Attend(torch.nn.Module):
    def forward(self, **case):
        return tree_attention(**case, scale=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_onnx_lowering_equals_the_op_for_any_batch(sizes, dtype):
    arguments = dict(zip(NAMES, _case(*sizes, dtype=dtype), strict=True))
    traced = trace(_Attend(), arguments, ("out",), 3, True)
    model = graph_to_onnx(traced.graph, "attend", {}).model
    session = ort.InferenceSession(model.SerializeToString())
    for batch in (1, 4):
        case = _case(*sizes, batch=batch, dtype=dtype)
        feeds = {name: item.numpy() for name, item in zip(NAMES, case, strict=True)}
        wide = [item.double() if item.is_floating_point() else item for item in case]
        tolerance = 2e-6 if dtype == torch.float32 else 1e-12
        expected = reference(*wide, 0.3).numpy()
        found = session.run(None, feeds)[0]
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)

"""dynamic_threshold: against its definition, under tracing, and in ONNX Runtime."""

import math

import numpy as np
import onnxruntime as ort
import pytest
import torch

from optimize.capture.from_module import trace
from optimize.export.to_onnx import graph_to_onnx
from optimize.ir.axis_rules import infer_axes, mixed_dimensions
from optimize.ir.spec import check_graph
from optimize.kernels.dynamic_threshold import dynamic_threshold
from optimize.measure.cost import graph_flops

CASES = [
    ((3, 1), 0.5, math.inf),
    ((3, 63), 0.995, math.inf),
    ((3, 64), 0.9, 2.0),
    ((3, 5, 13), 0.0, math.inf),
    ((3, 1000), 1.0, math.inf),
    ((3, 3, 32, 32), 0.995, 1.5),
    # 0.9 * 10 is whole: the quantile is one of the magnitudes.
    ((3, 11), 0.9, math.inf),
]


def draw(shape, dtype=torch.float32):
    """Samples of growing size, so that some need a threshold and some do not."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.3, 3.0, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def by_definition(x, ratio, max_value):
    """In float64 with numpy, which has its own quantile."""
    samples = []
    for sample in x.double().numpy():
        bound = min(max(np.quantile(np.abs(sample), ratio), 1.0), max_value)
        samples.append(np.clip(sample, -bound, bound) / bound)
    return np.stack(samples)


@pytest.mark.parametrize(("shape", "ratio", "max_value"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_matches_the_definition(shape, ratio, max_value, dtype):
    x = draw(shape, dtype)
    found = dynamic_threshold(x, ratio, max_value)
    assert found.dtype == dtype and found.is_contiguous()
    np.testing.assert_allclose(found, by_definition(x, ratio, max_value), rtol=0, atol=1e-6)


def test_values_between_minus_one_and_one_stay_as_they_are():
    x = draw((2, 3, 8, 8)).clamp(-1, 1)
    assert torch.equal(dynamic_threshold(x, 0.995, math.inf), x)


def test_is_no_plain_clip():
    """A clip to [-1, 1] would saturate; here the values below the quantile keep their ratios."""
    x = torch.linspace(-4, 4, 2001)[None]
    found = dynamic_threshold(x, 0.995, math.inf)
    inner = x.abs() < 3.9
    torch.testing.assert_close(found[inner], x[inner] / 3.98, rtol=1e-4, atol=0)


def test_strides_and_an_empty_batch():
    x = draw((3, 4, 6))
    other = x.mT.contiguous().mT
    assert torch.equal(dynamic_threshold(other, 0.9, 2.0), dynamic_threshold(x, 0.9, 2.0))
    assert dynamic_threshold(x[:0], 0.9, 2.0).shape == (0, 4, 6)


def test_opcheck():
    torch.library.opcheck(dynamic_threshold, (draw((3, 4, 6)), 0.995, math.inf))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3, dtype=torch.float16), 0.9, 2.0), "dtype torch.float16"),
        ((torch.zeros(2), 0.9, 2.0), "rank 1"),
        ((torch.zeros(2, 3), 1.5, 2.0), "ratio 1.5"),
        ((torch.zeros(2, 3), 0.9, 1.0), "max_value 1.0, expected one above 1"),
        ((torch.zeros(2, 3), 0.9, math.nan), "max_value nan"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=f"dynamic_threshold: found .*{message}"):
        dynamic_threshold(*arguments)


class _Threshold(torch.nn.Module):
    def __init__(self, ratio, max_value):
        super().__init__()
        self.ratio, self.max_value = ratio, max_value

    def forward(self, x):
        return dynamic_threshold(x, self.ratio, self.max_value)


@pytest.mark.parametrize(("shape", "ratio", "max_value"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_onnx_lowering_equals_the_op_for_any_batch(shape, ratio, max_value, dtype):
    module = _Threshold(ratio, max_value)
    graph = trace(module, {"x": draw(shape, dtype)}, ("out",), 3, True).graph
    check_graph(graph)
    session = ort.InferenceSession(graph_to_onnx(graph, "threshold", {}).model.SerializeToString())
    for batch in (1, 3, 4):
        x = draw((batch, *shape[1:]), dtype)
        (found,) = session.run(None, {"x": x.numpy()})
        expected = dynamic_threshold(x, ratio, max_value)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_each_sample_is_on_its_own():
    """The batch goes on as an axis, and positions of all others are mixed."""
    graph = trace(_Threshold(0.995, 2.0), {"x": draw((3, 4, 6))}, ("out",), 3, True).graph
    (node,) = graph.output_nodes().values()
    axes = infer_axes(graph)
    assert axes.of(node) == axes.of(graph.node("x"))
    assert mixed_dimensions(node, graph.node("x")) == {1, 2}
    assert graph_flops(graph) == 5 * 3 * 4 * 6

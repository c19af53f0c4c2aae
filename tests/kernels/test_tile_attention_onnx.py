"""tile_attention in ONNX Runtime, for any batch."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from optimize.capture.from_module import trace
from optimize.export.to_onnx import graph_to_onnx
from optimize.kernels.tile_attention import tile_attention
from optimize.kernels.tile_attention.pattern import TilePattern
from optimize.kernels.tile_attention.reference import reference

PATTERNS = [
    TilePattern(4, 5, (0, 2), 3, 2),
    TilePattern(4, 1, (1,), 0, 0),
    TilePattern(5, 7, (0, 1, 4), 0, 6),
    TilePattern(6, 13, (5,), 4, 0),
    TilePattern(3, 4, (0, 2), 1, 1),
    TilePattern(3, 4, (0, 1, 2), 0, 0),
]
HEADS, WIDTH = 3, 8


class _Model(torch.nn.Module):
    def __init__(self, pattern, scale):
        super().__init__()
        self.pattern, self.scale = pattern, scale

    def forward(self, query, key, value, mask=None):
        p = self.pattern
        return tile_attention(
            query * 1.0, key, value, p.frames, p.tokens_per_frame, list(p.references), p.prefix,
            p.suffix, mask, self.scale,
        )  # fmt: skip


def case(pattern, batch, mask=None, value_width=WIDTH):
    """Named inputs; `mask` is None, or its kind, batch and heads."""
    generator = torch.Generator().manual_seed(batch)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    widths = {"query": WIDTH, "key": WIDTH, "value": value_width}
    x = {name: draw(batch, HEADS, pattern.length, width) for name, width in widths.items()}
    if mask is not None:
        kind, own_batch, heads = mask
        size = (batch if own_batch else 1, heads, 1, pattern.length)
        shown = draw(*size) < 0.5
        shown[..., pattern.prefix :: pattern.tokens_per_frame] = True
        x["mask"] = shown if kind == "bool" else torch.where(shown, draw(*size), -torch.inf)
    return x


def exported(pattern, scale=None, **options):
    traced = trace(_Model(pattern, scale), case(pattern, 2, **options), ("rows",), 2, True)
    return graph_to_onnx(traced.graph, "tiles", {}).model


MASKS = [None, ("bool", True, 1), ("bool", False, 1), ("added", True, HEADS), ("bool", True, HEADS)]


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_onnx_runtime_gives_the_numbers_of_the_reference(pattern, mask):
    model = exported(pattern, mask=mask)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    session = ort.InferenceSession(model.SerializeToString())
    for batch in (1, 2, 5):
        x = case(pattern, batch, mask)
        (found,) = session.run(None, {name: item.numpy() for name, item in x.items()})
        expected = reference(x["query"], x["key"], x["value"], pattern, x.get("mask"))
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-6)


def test_scale_and_wider_values():
    pattern = PATTERNS[0]
    session = ort.InferenceSession(exported(pattern, 0.7, value_width=12).SerializeToString())
    x = case(pattern, 3, value_width=12)
    (found,) = session.run(None, {name: item.numpy() for name, item in x.items()})
    expected = reference(*x.values(), pattern, scale=0.7)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("mask", [None, ("bool", True, 1)], ids=str)
def test_graph_has_two_attentions_and_no_constant_larger_than_the_grid_of_frames(mask):
    model = exported(TilePattern(24, 16, tuple(range(0, 24, 4)), 5, 0), mask=mask)
    assert [node.op_type for node in model.graph.node].count("Attention") == 2
    assert max(np.prod(item.dims) for item in model.graph.initializer) < 24**2
    transposes = [node for node in model.graph.node if node.op_type == "Transpose"]
    assert bool(transposes) == (mask is not None)


def test_dense_pattern_is_one_attention():
    for pattern in PATTERNS[-2:]:
        ops = [node.op_type for node in exported(pattern).graph.node]
        assert ops.count("Attention") == 1 and "Concat" not in ops

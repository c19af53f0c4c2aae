"""Graphs in ONNX Runtime equal graphs in PyTorch."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F

from optimize.capture.from_module import trace
from optimize.export.to_onnx import graph_to_onnx, used_weights
from optimize.export.weights import layout_weights
from optimize.ir.errors import UnsupportedOpError


class Module(torch.nn.Module):
    """Wraps a function; its outputs are returned as a tuple."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.randn(6, 8))
        self.kernel = torch.nn.Parameter(torch.randn(6, 3, 3, 3))

    def forward(self, **inputs):
        return tuple(self.function(self, **inputs))


def exported(module, inputs, count, folder):
    """(traced graph and weights, ONNX Runtime session) of a module with `count` outputs."""
    names = tuple(f"out{position}" for position in range(count))
    traced = trace(module.eval(), inputs, names, 2, True)
    layout = layout_weights(traced.weights, used_weights(traced.graph))
    translated = graph_to_onnx(traced.graph, "graph", layout.places)
    (folder / "weights.safetensors").write_bytes(b"".join(layout.chunks()))
    onnx.save(translated.model, folder / "graph.onnx")
    onnx.checker.check_model(folder / "graph.onnx", full_check=True)
    return traced, translated, ort.InferenceSession(folder / "graph.onnx")


def check(function, inputs, folder, tolerance=1e-5):
    """Compares all outputs at batches 1, 2 and 3."""
    torch.manual_seed(0)
    module = Module(function)
    count = len(tuple(function(module, **inputs)))
    traced, translated, session = exported(module, inputs, count, folder)
    for batch in (2, 1, 3):
        feeds = {name: _resized(tensor, batch) for name, tensor in inputs.items()}
        expected = traced.graph.run(traced.weights, feeds)
        found = session.run(
            list(translated.outputs.values()),
            {translated.inputs[name]: feeds[name].numpy() for name in traced.graph.inputs},
        )
        for (name, tensor), array in zip(expected.items(), found, strict=True):
            assert array.dtype == tensor.numpy().dtype, name
            assert array.shape == tuple(tensor.shape), name
            np.testing.assert_allclose(array, tensor.numpy(), tolerance, tolerance, err_msg=name)


def _resized(tensor, batch):
    if tensor.dim() == 0 or tensor.shape[0] != 2:
        return tensor
    return torch.cat([tensor, tensor[:1]])[:batch].contiguous()


X = torch.linspace(-2, 2, 2 * 4 * 8).reshape(2, 4, 8)
PICTURE = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6).sin()
INDEX = torch.tensor([[1, 3, 0], [2, 2, 1]])


def _elementwise(m, x):
    y = x.abs() + 0.5
    yield from (x.exp(), y.log(), y.sqrt(), y.rsqrt(), x.sin(), x.tanh(), x.sigmoid(), x.erf())
    yield from (x.neg(), y.reciprocal(), x.relu(), x.floor(), x.round(), x.sign(), F.silu(x))
    yield from (F.gelu(x), F.gelu(x, approximate="tanh"), x**2, y**0.5, y**-1.5, 2**x)
    yield from (x + 1, 1 - x, x - y, x * 2.5, x / y, x / 3, torch.add(x, y, alpha=2))
    yield from (x.clamp(-1, 1), x.clamp(min=0.0), torch.maximum(x, -x), torch.minimum(x, -x))


def _types(m, x):
    whole = (x * 3).to(torch.int64)
    flags = x > 0
    yield from (whole, whole / 2, whole + x, flags, ~flags, flags & (x < 1), flags | (x < -1))
    yield from (x == 0, x != 0, x <= 0, x >= 0, flags.float(), whole.type_as(x), x.double())
    yield from (torch.where(flags, x, 0.0), torch.where(flags, x, -x), x.masked_fill(flags, 7.0))
    yield from (torch.where(flags, flags, ~flags), flags.cumsum(1), whole.float().mean(1))


def _shapes(m, x):
    yield from (x.reshape(-1, 8), x.flatten(1), x.unflatten(-1, (2, 4)), x.permute(2, 0, 1))
    yield from (x.transpose(1, 2), x.unsqueeze(1), x.unsqueeze(-1), x[:, :1].squeeze(1), x[:, 1])
    yield from (x[:, 1:3], x[..., ::2], x[:, -1], x[:, :, -3:], x[:, :1].expand(-1, 4, -1))
    yield from (*x.chunk(2, 1), *x.split([3, 5], -1), *x.unbind(1), torch.cat([x, x], 1))
    yield from (torch.stack([x, -x], 1), x.repeat(1, 2, 1), x.repeat_interleave(2, dim=1))
    yield from (x.roll(1, 1), F.pad(x, (1, 2)), x.flip(1), torch.outer(x[0, 0], x[0, 1]))
    yield from (x.new_zeros(x.shape), torch.ones_like(x), torch.full_like(x, 2.0), x.diff())
    yield from (torch.arange(x.shape[0] * 2), torch.zeros(x.shape[0], 3), x.clone() + x.shape[0])
    y = x.clone()
    y[:, 1:3] = 5.0
    y[..., ::2] = x[..., 1::2]
    yield y


def _reductions(m, x):
    yield from (x.mean(-1), x.mean((0, 1), keepdim=True), x.sum(1), x.sum(), x.amax(-1), x.amin(1))
    yield from (x.argmax(-1), x.argmax(), x.softmax(-1), x.log_softmax(1), x.cumsum(1), x.std(-1))
    yield from (x.var(-1, correction=0), x.topk(3, -1).values, x.sort(-1).values, x.norm(dim=-1))
    yield torch.einsum("bnc,bmc->bnm", x, x)


def _indexing(m, x, index):
    yield from (x.gather(1, index[..., None].expand(-1, -1, 8)), m.weight[index])
    yield from (
        F.embedding(index, m.weight),
        x[:, torch.tensor([0, 2])],
        x.index_select(1, index[0]),
    )
    yield from (x.triu(), x.tril(-1), x[torch.arange(x.shape[0]), index[:, 0]])


def _layers(m, x, picture):
    bias = m.weight[:, 0]
    yield from (
        F.linear(x, m.weight),
        F.linear(x, m.weight, bias),
        F.linear(x[:, 0], m.weight, bias),
    )
    yield from (F.layer_norm(x, (8,)), F.layer_norm(x, (8,), m.weight[0], m.weight[1], 1e-6))
    yield from (
        F.rms_norm(x, (8,)),
        F.rms_norm(x, (8,), m.weight[0], 1e-6),
        F.layer_norm(x, (4, 8)),
    )
    yield from (F.conv2d(picture, m.kernel, bias), F.conv2d(picture, m.kernel, None, 2, 1))
    yield from (F.conv2d(picture, m.kernel, padding="same"), F.group_norm(picture, 3))
    yield from (F.interpolate(picture, scale_factor=2.0), F.avg_pool2d(picture, 2))
    yield from (F.pixel_shuffle(picture.reshape(-1, 12, 3, 3), 2), x @ x.transpose(1, 2))
    yield F.group_norm(x.transpose(1, 2), 4, m.weight[0], m.weight[1])


def _attention(m, x):
    heads = x.reshape(x.shape[0], 4, 2, 4).transpose(1, 2)
    few = heads[:, :, :3]
    flags = torch.ones(3, 4, dtype=torch.bool).tril()
    attend = F.scaled_dot_product_attention
    yield from (attend(heads, heads, heads), attend(few, heads, heads, scale=0.3))
    yield from (attend(few, heads, heads, flags), attend(heads, heads, heads, is_causal=True))
    yield from (attend(few, heads, heads, x[:, :1, None, :4] * 3), attend(x, x, x))
    yield from (
        attend(few, heads, heads, is_causal=True),
        attend(heads, heads, heads, x[:, None, :, :4]),
    )
    yield attend(heads, heads[:, :1], heads[:, :1], enable_gqa=True)
    yield attend(few, heads, heads, (x[:, 0, :4] < 9)[:, None, None])


def _rotary(m, x):
    angle = torch.arange(4.0)[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
    turn = torch.polar(torch.ones_like(angle), angle)
    pairs = torch.view_as_complex(x.reshape(x.shape[0], 4, 4, 2))
    yield torch.view_as_real(pairs * turn).flatten(2)
    yield torch.view_as_real(torch.cat([pairs * turn[None], pairs], -1).unsqueeze(1)).flatten(-2)
    yield torch.view_as_real(pairs.transpose(1, 2) * 2.0)


@pytest.mark.parametrize(
    "function",
    [_elementwise, _types, _shapes, _reductions, _attention, _rotary],
    ids=lambda function: function.__name__.strip("_"),
)
def test_ops_equal_pytorch_at_every_batch(function, tmp_path):
    check(function, {"x": X}, tmp_path)


def test_indexing_equals_pytorch_at_every_batch(tmp_path):
    check(_indexing, {"x": X, "index": INDEX}, tmp_path)


def test_layers_equal_pytorch_at_every_batch(tmp_path):
    check(_layers, {"x": X, "picture": PICTURE}, tmp_path)


@pytest.mark.parametrize("family", ["pixart", "lumina"])
def test_whole_models_equal_pytorch(family, captured, tmp_path):
    made, program = captured(family, torch.float32)
    graph = program.graphs["denoiser"]
    layout = layout_weights(program.weights, used_weights(graph))
    translated = graph_to_onnx(graph, "denoiser", layout.places)
    (tmp_path / "weights.safetensors").write_bytes(b"".join(layout.chunks()))
    onnx.save(translated.model, tmp_path / "graph.onnx")
    onnx.checker.check_model(tmp_path / "graph.onnx", full_check=True)
    session = ort.InferenceSession(tmp_path / "graph.onnx")
    torch.manual_seed(0)
    feeds = {name: _example(graph.node(name).meta["val"]) for name in graph.inputs}
    expected = graph.run(program.weights, feeds)["prediction"].numpy()
    given = {translated.inputs[name]: tensor.numpy() for name, tensor in feeds.items()}
    (found,) = session.run(None, given)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def _example(fake):
    shape = [size if isinstance(size, int) else int(size.node.hint) for size in fake.shape]
    if fake.dtype in (torch.int64, torch.int32):
        return torch.randint(0, 4, shape).to(fake.dtype)
    return torch.ones(shape, dtype=torch.bool) if fake.dtype == torch.bool else torch.randn(shape)


def test_an_input_or_a_value_returned_twice_is_copied(tmp_path):
    def function(m, x):
        y = x * 2
        yield from (x, y, y, x, m.weight)

    check(function, {"x": X}, tmp_path)


def test_an_output_may_have_the_name_of_an_input(tmp_path):
    traced = trace(Module(lambda m, x: (x + 1,)), {"x": X}, ("x",), 2, True)
    translated = graph_to_onnx(traced.graph, "graph", {})
    assert translated.outputs == {"x": "x_out"}
    session = ort.InferenceSession(translated.model.SerializeToString())
    np.testing.assert_array_equal(session.run(None, {"x": X.numpy()})[0], X.numpy() + 1)


def test_weights_stay_outside_and_are_used_as_they_lie_in_the_file(tmp_path):
    module = Module(lambda m, x: (F.linear(x, m.weight, m.weight[:, 0]),))
    _, translated, _ = exported(module, {"x": X}, 1, tmp_path)
    (initializer,) = [
        t
        for t in translated.model.graph.initializer
        if t.name == "function_weight" or t.name.endswith("weight")
    ]
    assert initializer.data_location == onnx.TensorProto.EXTERNAL
    place = {entry.key: entry.value for entry in initializer.external_data}
    raw = (tmp_path / "weights.safetensors").read_bytes()
    start = int(place["offset"])
    stored = np.frombuffer(raw[start : start + int(place["length"])], np.float32).reshape(6, 8)
    np.testing.assert_array_equal(stored, module.weight.detach().numpy())
    (gemm,) = [node for node in translated.model.graph.node if node.op_type == "Gemm"]
    assert gemm.input[1] == initializer.name


def test_an_op_without_lowering_is_named_with_its_node_and_line():
    """A8"""

    @torch.library.custom_op("optimize_test::mystery", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @mystery.register_fake
    def _(x):
        return torch.empty_like(x)

    traced = trace(Module(lambda m, x: (mystery(x),)), {"x": X}, ("out",), 2, True)
    with pytest.raises(
        UnsupportedOpError, match=r"optimize_test.mystery.*node 'mystery'.*line \d+"
    ):
        graph_to_onnx(traced.graph, "graph", {})

"""solver_step: against the plain sequence of operations, under tracing, and in ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from optimize.capture.from_module import trace
from optimize.export.to_onnx import graph_to_onnx
from optimize.ir.axis_rules import infer_axes
from optimize.ir.spec import check_graph
from optimize.kernels.solver_step import solver_step
from optimize.kernels.solver_step.reference import reference
from optimize.measure.cost import graph_bytes, graph_flops

BFLOAT16 = onnx.TensorProto.BFLOAT16
SHAPES = [(1, 1), (1, 63), (2, 32), (5, 13), (1, 1000), (3, 1, 5, 7), (2, 4, 8, 8), (3,)]


def case(shape, kept=1, output=torch.float32, noise=False, guided=False, dtype=torch.float32):
    """Arguments by name, without coefficients and pattern."""
    generator = torch.Generator().manual_seed(0)

    def draw(size, kind):
        return torch.randn(size, dtype=torch.float64, generator=generator).to(kind)

    return {
        "latent": draw(shape, dtype),
        "output": draw((shape[0] * (2 if guided else 1), *shape[1:]), output),
        "kept": [draw(shape, dtype) for _ in range(kept)],
        "noise": draw(shape, dtype) if noise else None,
        "guidance_scale": torch.tensor(4.5, dtype=dtype) if guided else None,
    }


def coefficients(pattern, dtype=torch.float32):
    words = pattern.split(",")
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(words), len(words[0]), generator=generator, dtype=torch.float64).to(
        dtype
    )


def assert_same_bits(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        assert one.is_contiguous()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adds_up_in_the_order_of_the_columns(shape):
    x = case(shape, kept=1)
    c = coefficients("xxx,xx0")
    latent, prediction, (kept,) = x["latent"], x["output"], x["kept"]
    expected = [
        latent * c[0, 0] + prediction * c[0, 1] + kept * c[0, 2],
        latent * c[1, 0] + prediction * c[1, 1],
    ]
    assert_same_bits(solver_step(**x, coefficients=c, pattern="xxx,xx0"), expected)


@pytest.mark.parametrize("output", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_guidance_is_computed_in_the_latents_dtype(output, dtype):
    x = case((3, 2, 5), kept=0, output=output, guided=True, dtype=dtype)
    c = coefficients("1x", dtype)
    unconditional, conditional = x["output"].to(dtype).chunk(2)
    prediction = unconditional + 4.5 * (conditional - unconditional)
    expected = [x["latent"] + prediction * c[0, 1]]
    assert_same_bits(solver_step(**x, coefficients=c, pattern="1x"), expected)


def test_noise_is_the_last_column_and_the_history_moves_on():
    x = case((2, 65), kept=2, noise=True)
    c = coefficients("xxxxx,xx000,00100")
    moved, denoised, older = solver_step(**x, coefficients=c, pattern="xxxxx,xx000,00100")
    first, second = x["kept"]
    by_hand = x["latent"] * c[0, 0] + x["output"] * c[0, 1] + first * c[0, 2] + second * c[0, 3]
    assert_same_bits([moved], [by_hand + x["noise"] * c[0, 4]])
    assert_same_bits([denoised], [x["latent"] * c[1, 0] + x["output"] * c[1, 1]])
    assert_same_bits([older], [first])
    assert older.data_ptr() != first.data_ptr()


def test_columns_left_out_may_be_nan():
    x = case((2, 63), kept=2, noise=True)
    for tensor in (x["latent"], x["kept"][1], x["noise"]):
        tensor.fill_(float("nan"))
    c = coefficients("0xx00")
    c[0, 0] = float("nan")
    (found,) = solver_step(**x, coefficients=c, pattern="0xx00")
    assert torch.isfinite(found).all()


def strided(tensor):
    """The same numbers behind other strides."""
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_strides_change_nothing(shape):
    x = case(shape, kept=1, noise=True, guided=True, output=torch.bfloat16)
    c = coefficients("xxxx,0010")
    other = dict(x, latent=strided(x["latent"]), output=strided(x["output"]))
    other |= {"kept": [strided(x["kept"][0])], "noise": strided(x["noise"])}
    found = solver_step(**other, coefficients=strided(c), pattern="xxxx,0010")
    assert_same_bits(found, solver_step(**x, coefficients=c, pattern="xxxx,0010"))


@pytest.mark.parametrize(("noise", "guided"), [(False, False), (True, True)])
def test_opcheck(noise, guided):
    x = case((3, 2, 4), kept=1, noise=noise, guided=guided)
    pattern = "xxx1,0010" if noise else "xxx,001"
    given = (x["latent"], x["output"], x["kept"], coefficients(pattern), pattern)
    torch.library.opcheck(solver_step, (*given, x["noise"], x["guidance_scale"]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"latent": torch.zeros(2, 3, dtype=torch.float16)}, "rank 2 .* float32 or float64"),
        ({"output": torch.zeros(2, 3, dtype=torch.int64)}, "expected a float dtype"),
        ({"output": torch.zeros(4, 3)}, "output of shape \\[4, 3\\], expected \\[2, 3\\]"),
        ({"kept": [torch.zeros(2, 4)]}, "kept\\[0\\] of shape \\[2, 4\\], expected \\[2, 3\\]"),
        ({"kept": [torch.zeros(2, 3, dtype=torch.float64)]}, "expected torch.float32 as the"),
        ({"noise": torch.zeros(2, 3)}, "expected words of 4 letters"),
        ({"guidance_scale": torch.tensor(2.0)}, "output of shape \\[2, 3\\], expected \\[4, 3\\]"),
        ({"coefficients": torch.zeros(3, 2)}, "of shape \\[3, 2\\], expected \\[2, 3\\]"),
        ({"pattern": "xxx,xy0"}, "'xy0' in .* letters out of '0', '1' and 'x'"),
        ({"pattern": "xxx,000"}, "'000' in .* which reads no column"),
    ],
    ids=lambda item: next(iter(item)) if isinstance(item, dict) else "",
)
def test_refuses_what_does_not_fit(changed, message):
    x = case((2, 3), kept=1) | {"coefficients": torch.zeros(2, 3), "pattern": "xxx,xx0"}
    with pytest.raises(ValueError, match=f"^solver_step: found.* {message}"):
        solver_step(**(x | changed))


class _Step(torch.nn.Module):
    """The op behind a network that returns two halves with guidance, else one tensor."""

    def __init__(self, pattern):
        super().__init__()
        self.pattern = pattern

    def forward(self, latent, halves, kept, coefficients, noise=None, guidance_scale=None):
        output = torch.cat(halves)
        return tuple(
            solver_step(latent, output, kept, coefficients, self.pattern, noise, guidance_scale)
        )


def arguments(x, pattern):
    """The arguments of `_Step`, by name."""
    given = dict(x, coefficients=coefficients(pattern, x["latent"].dtype))
    given["halves"] = list(given.pop("output").split(len(x["latent"])))
    return {name: item for name, item in given.items() if item is not None}


def traced_step(x, pattern):
    """The op as a graph for any batch."""
    outputs = tuple(f"out_{row}" for row in range(len(pattern.split(","))))
    return trace(_Step(pattern), arguments(x, pattern), outputs, len(x["latent"]), True).graph


PROGRAMS = [
    ("xxxx,xx00,0010", {}),
    ("xxxxx,xx000,00100", {"noise": True}),
    ("1x00", {"guided": True, "output": torch.bfloat16}),
    ("0xxx1,x1000", {"guided": True, "noise": True, "output": torch.float16}),
    ("x1xx,xx00", {"dtype": torch.float64, "guided": True}),
    ("0010,1000", {}),
]


@pytest.mark.parametrize(("pattern", "options"), PROGRAMS, ids=str)
def test_onnx_runtime_gives_the_bits_of_the_reference_at_any_batch(pattern, options):
    example = case((7, 2, 5), kept=2, **options)
    graph = traced_step(example, pattern)
    check_graph(graph)
    session = ort.InferenceSession(graph_to_onnx(graph, "step", {}).model.SerializeToString())
    for batch in (1, 3, 7):
        x = case((batch, 2, 5), kept=2, **options)
        feeds = {}
        for name, item in arguments(x, pattern).items():
            if isinstance(item, torch.Tensor):
                feeds[name] = as_value(item)
            else:
                feeds |= {f"{name}_{place}": as_value(one) for place, one in enumerate(item)}
        found = session.run_with_ort_values(list(graph.outputs), feeds)
        expected = reference(
            **x, coefficients=coefficients(pattern, x["latent"].dtype), pattern=pattern
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())


def as_value(tensor):
    """A tensor for ONNX Runtime; numpy has no bfloat16."""
    if tensor.dtype == torch.bfloat16:
        bits = tensor.view(torch.uint16).numpy()
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(tensor.contiguous().numpy())


def test_an_output_in_the_latents_dtype_is_not_cast():
    def kinds(output):
        graph = traced_step(case((7, 2, 5), kept=2, output=output), "xxxx,xx00,0010")
        return [node.op_type for node in graph_to_onnx(graph, "step", {}).model.graph.node]

    assert "Cast" not in kinds(torch.float32)
    assert kinds(torch.float16).count("Cast") == 1


def test_all_columns_and_results_have_the_same_axes():
    x = case((7, 2, 5), kept=2, noise=True, guided=True)
    graph = traced_step(x, "xxxxx,xx000")
    axes = infer_axes(graph)
    latent = axes.of(graph.node("latent"))
    for name in ("kept_0", "kept_1", "noise", "halves_0", "halves_1"):
        assert axes.of(graph.node(name)) == latent
    for node in graph.output_nodes().values():
        assert axes.of(node) == latent
    assert len(set(map(id, latent))) == 3
    (cat,) = [node for node in graph.graph.nodes if "cat" in str(node.target)]
    assert axes.parts(axes.of(cat)[0]) == [latent[0]] * 2


def test_cost_is_one_pass_over_memory():
    x = case((7, 2, 5), kept=2, output=torch.bfloat16)
    graph = traced_step(x, "xxx1,xx00,0010")
    elements = 7 * 2 * 5
    # Three products and three sums, then two products and one sum, then a copy.
    assert graph_flops(graph) == 9 * elements
    concatenated = 2 * 2 * elements
    assert graph_bytes(graph) - concatenated == 4 * (3 + 3) * elements + 2 * elements + 4 * 12

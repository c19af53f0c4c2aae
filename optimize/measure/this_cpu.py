"""This CPU as a machine: what it can do in ONNX Runtime, measured on small synthetic graphs."""

import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimize.measure.machines import Machine
from optimize.measure.timing import interleaved_seconds
from optimize.runtime.driver import Run
from optimize.runtime.loop import Binding, Call, Destination, Loop, Repeat, Slot
from optimize.runtime.manifest import GraphEntry
from optimize.runtime.onnx_engine import CPU, OnnxGraphs

OPSET, IR_VERSION = 23, 10
ROUNDS = 15

OPS, SMALL_OPS = 16, 96
"""Ops of a graph, so many that its call does not count."""

CALLS = 8
"""Of the loop that measures calls: few, because a call often comes after work that empties the
caches."""

CACHE_BYTES = 2**20
"""Assumed where the system does not say how large the second-level cache is."""

SMALL, LARGE = (1, 1, 8), (2, 64, 256)
"""Shapes of elementwise ops: one that is all launch, one that is all work and fits in the cache."""

ROWS = (8, 128)
"""Of the products whose rates are compared."""

WIDTH, STREAMED_WIDTH = 256, 1024
"""Of these products, and of those with one row, whose 4 MB of weights each come from memory."""

ATTENTION = (1, 4, 256, 32)
"""Samples, heads, tokens and width of an attention op that is mostly work."""

KINDS: Mapping[str, tuple[str, Mapping[str, Any], int]] = {
    "arithmetic": ("Add", {}, 1),
    "activation": ("Sigmoid", {}, 0),
    "function": ("Sin", {}, 0),
    "power": ("Pow", {}, 1),
    "softmax": ("Softmax", {"axis": -1}, 0),
    "norm": ("LayerNormalization", {"axis": -1}, 2),
}
"""Kind of kernel → an op of that kind, its attributes, and its operands of one row."""


@functools.cache
def this_cpu(threads: int = 1) -> Machine:
    """This CPU, as ONNX Runtime uses it; measured in about a second, once per process.

    Args:
        threads: of one operator, >= 1.
    """
    runs = {name: _loaded(model, threads) for name, model in _models().items()}
    runs["call"] = _calls(threads)
    # One thread's own time leaves out what other processes take.
    clock = time.thread_time if threads == 1 else time.perf_counter
    measured = interleaved_seconds(runs, ROUNDS, warmup=2, clock=clock)
    seconds = {
        name: statistics.median(spent) / (CALLS if name == "call" else _ops(name))
        for name, spent in measured.items()
    }
    return machine_from(f"this CPU, {threads} thread{'s' * (threads > 1)}", seconds)


def _ops(name: str) -> int:
    return SMALL_OPS if name.endswith("small") else OPS


def machine_from(name: str, seconds: Mapping[str, float]) -> Machine:
    """The machine for which the synthetic graphs take the seconds per op that were measured."""
    starts = {kind: seconds[f"{kind} small"] for kind in (*KINDS, "sum", "copy", "view")}
    each = {
        kind: max(seconds[f"{kind} large"] - starts[kind], 0.0) / math.prod(LARGE)
        for kind in (*KINDS, "sum", "copy")
    }
    starts["product"] = starts["convolution"] = seconds["product small"]
    starts["attention"] = seconds["attention small"]

    def work(what: str) -> float:
        return max(seconds[what] - starts[what.partition(" ")[0]], 1e-9)

    # peak * rows / (rows + half) at both numbers of rows, solved for half and peak.
    few, many = (2.0 * rows * WIDTH**2 / work(f"product {rows}") for rows in ROWS)
    half = (many - few) / (few / ROWS[0] - many / ROWS[1]) if many > few else 0.0
    half = half if 0 <= half < math.inf else 0.0
    peak = many * (ROWS[1] + half) / ROWS[1]
    batch, heads, tokens, width = ATTENTION
    scores = batch * heads * tokens**2
    products = 4.0 * scores * width / (peak * width / (width + half))
    each["attention"] = max(work("attention large") - products, 0.0) / scores
    return Machine(
        name=name,
        flops_per_second={"float32": peak},
        bytes_per_second=4.0 * STREAMED_WIDTH**2 / work("product 1"),
        launch_seconds=starts["arithmetic"],
        call_seconds=seconds["call"],
        half_rows=half,
        fuses=False,
        cache_bytes=float(_cache_bytes()),
        element_seconds=each,
        kind_launch_seconds=starts,
    )


def _cache_bytes() -> int:
    """The size of a core's second-level cache."""
    name = "SC_LEVEL2_CACHE_SIZE"
    return (os.sysconf(name) if name in os.sysconf_names else 0) or CACHE_BYTES


def _models() -> dict[str, onnx.ModelProto]:
    """Name → a graph of `_ops(name)` equal ops."""
    random = np.random.default_rng(0)

    def array(*shape: int) -> NDArray[Any]:
        return random.random(shape, np.float32) / shape[-1] + 0.5 / shape[-1]

    models = {}
    for size, shape, ops in (("small", SMALL, SMALL_OPS), ("large", LARGE, OPS)):
        for kind, (op, attributes, count) in KINDS.items():
            operands = [array(shape[-1]) for _ in range(count)]
            models[f"{kind} {size}"] = _model(op, shape, operands, count=ops, **attributes)
        axes = np.array([-1])
        models[f"sum {size}"] = _model("ReduceSum", shape, [axes], count=ops, chained=False)
        heads = (shape[0], 8, shape[1], shape[2] // 8)
        turn = [0, 2, 1, 3]
        models[f"copy {size}"] = _model("Transpose", heads, count=ops, perm=turn)
    models["view small"] = _model("Reshape", SMALL, [np.array(SMALL)], count=SMALL_OPS)
    for name, rows, width in (("small", 1, 8), *((str(rows), rows, WIDTH) for rows in ROWS)):
        weight = [array(width, width)]
        ops = _ops(name)
        models[f"product {name}"] = _model("Gemm", (rows, width), weight, count=ops, transB=1)
    streamed = [[array(STREAMED_WIDTH, STREAMED_WIDTH)] for _ in range(OPS)]
    models["product 1"] = _model("Gemm", (1, STREAMED_WIDTH), weights=streamed, transB=1)
    for size, sites in (("small", (1, 1, 1, 8)), ("large", ATTENTION)):
        pair = [array(*sites), array(*sites)]
        models[f"attention {size}"] = _model("Attention", sites, pair, count=_ops(size))
    return models


def _model(
    op: str,
    shape: Sequence[int],
    operands: Sequence[NDArray[Any]] = (),
    weights: Sequence[Sequence[NDArray[Any]]] = (),
    count: int = OPS,
    chained: bool = True,
    **attributes: Any,
) -> onnx.ModelProto:
    """A graph of equal ops; each takes what the one before gives or, not chained, the input.

    Args:
        operands: further inputs of every op.
        weights: per op, further inputs of its own, instead of `operands`.
    """
    sets = list(weights) or [operands]
    constants = [
        numpy_helper.from_array(item, f"c{index}_{place}")
        for index, items in enumerate(sets)
        for place, item in enumerate(items)
    ]
    nodes = []
    for index in range(count):
        source = f"y{index - 1}" if chained and index else "x"
        own = [f"c{index % len(sets)}_{place}" for place in range(len(sets[0]))]
        nodes.append(helper.make_node(op, [source, *own], [f"y{index}"], **attributes))
    given = [f"y{count - 1}"] if chained else [f"y{index}" for index in range(count)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in given]
    return _proto(helper.make_graph(nodes, op, inputs, outputs, constants))


def _proto(graph: onnx.GraphProto) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def _loaded(model: onnx.ModelProto, threads: int) -> Callable[[], object]:
    """Runs a graph once, as it is."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    (taken,) = session.get_inputs()
    binding = session.io_binding()
    binding.bind_cpu_input(taken.name, np.ones(taken.shape, np.float32))
    for item in session.get_outputs():
        binding.bind_output(item.name)
    return lambda: session.run_with_iobinding(binding)


def _calls(threads: int) -> Callable[[], object]:
    """Runs a loop of calls of a graph that does nothing worth the name."""
    value = helper.make_tensor_value_info
    x, y = (value(name, TensorProto.FLOAT, list(SMALL)) for name in "xy")
    model = _proto(helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "step", [x], [y]))
    entry = GraphEntry(file="graphs/step.onnx", inputs={"x": "x"}, outputs={"y": "y"})
    graphs = OnnxGraphs({"step": model.SerializeToString()}, {"step": entry}, {}, threads=threads)
    slot = Binding(source="state", name="x")
    call = Call(graph="step", inputs={"x": slot}, outputs={"y": Destination(state="x")})
    loop = Loop(
        slots=(Slot(name="x", dtype="float32", shape=SMALL),),
        body=(Repeat(steps=("step",) * CALLS, bodies={"step": (call,)}),),
        results={"x": "x"},
    )
    return lambda: Run(loop, {}, graphs.engine(), {}, {}, {}, seed=0).execute()

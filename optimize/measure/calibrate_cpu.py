"""Times small ONNX graphs on this processor, for the cost model.

The graphs are synthetic: square products with one to many rows, a chain of tiny additions, a large
addition, an exponential, an attention, and a loop whose steps do nothing. No model is among them.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from optimize.measure.machines import Machine
from optimize.runtime.loop import Binding, Call, Destination, Loop, Repeat, Slot
from optimize.runtime.manifest import GraphEntry

OPSET = 23
WIDTH = 256
ROWS = (1, 4, 16, 64, 256)
LARGE = 1 << 18
"""Numbers of the large addition: a mebibyte each, as the activations of a mid-sized layer."""
CHAIN = 64
HEADS, TOKENS, HEAD = 4, 128, 32
STEPS = 50
REPEATS = 9


def calibrated(threads: int) -> Machine:
    """The machine of `optimize.measure.roofline.this_cpu`."""
    launch = _seconds(_chain(), threads) / CHAIN
    products = {rows: _seconds(_product(rows), threads) - launch for rows in ROWS}
    rates = {
        rows: 2.0 * rows * WIDTH * WIDTH / max(spent, 1e-9) for rows, spent in products.items()
    }
    best = max(rates.values())
    bandwidth = 3 * 4 * LARGE / max(_seconds(_addition(), threads) - launch, 1e-9)
    slow = _seconds(_one_op("Exp"), threads) - launch - 2 * 4 * LARGE / bandwidth
    attention = 4.0 * HEADS * TOKENS * TOKENS * HEAD / (_seconds(_attention(), threads) - launch)
    return Machine(
        f"this CPU, {threads} {'thread' if threads == 1 else 'threads'}",
        {"float32": best},
        bytes_per_second=bandwidth,
        launch_seconds=launch,
        call_seconds=_call_seconds(threads),
        row_efficiency=tuple((float(rows), rate / best) for rows, rate in rates.items()),
        attention_efficiency=min(1.0, attention / best),
        element_seconds=max(0.0, slow / LARGE),
        copies=True,
    )


def _seconds(model: tuple[bytes, dict[str, Any]], threads: int) -> float:
    """The fastest of several runs of a graph: what it takes when nothing disturbs it."""
    session = _session(model[0], threads)
    names = [item.name for item in session.get_outputs()]
    return _fastest(lambda: session.run(names, model[1]))


def _session(content: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Constant folding or fusion would leave nothing of the chains to time.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _fastest(run: Callable[[], object]) -> float:
    run()
    spent = []
    for _ in range(REPEATS):
        loops, start = 0, time.perf_counter()
        while time.perf_counter() - start < 0.004:
            run()
            loops += 1
        spent.append((time.perf_counter() - start) / loops)
    return min(spent)


def _model(nodes: list[Any], inputs: dict[str, Any], output: str, weights: Any = ()) -> Any:
    """A graph's bytes, and the inputs it is run with."""
    graph = helper.make_graph(
        nodes,
        "calibration",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, list(array.shape))
            for name, array in inputs.items()
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        list(weights),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return model.SerializeToString(), inputs


def _numbers(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _chain() -> Any:
    nodes = [helper.make_node("Add", [f"x{i}", "x0"], [f"x{i + 1}"]) for i in range(CHAIN)]
    return _model(nodes, {"x0": _numbers(1, 64)}, f"x{CHAIN}")


def _product(rows: int) -> Any:
    weight = numpy_helper.from_array(_numbers(WIDTH, WIDTH), "w")
    node = helper.make_node("Gemm", ["x", "w"], ["y"])
    return _model([node], {"x": _numbers(rows, WIDTH)}, "y", [weight])


def _addition() -> Any:
    node = helper.make_node("Add", ["x", "z"], ["y"])
    return _model([node], {"x": _numbers(1, LARGE), "z": _numbers(1, LARGE)}, "y")


def _one_op(op: str) -> Any:
    return _model([helper.make_node(op, ["x"], ["y"])], {"x": _numbers(1, LARGE)}, "y")


def _attention() -> Any:
    names = ("q", "k", "v")
    inputs = {name: _numbers(1, HEADS, TOKENS, HEAD) for name in names}
    return _model([helper.make_node("Attention", list(names), ["y"])], inputs, "y")


def _call_seconds(threads: int) -> float:
    """Of a step of a loop whose graph does nothing: engine call, bindings, the driver around it."""
    from optimize.runtime.driver import Run
    from optimize.runtime.onnx_engine import OnnxGraphs

    content, _ = _model([helper.make_node("Identity", ["x"], ["y"])], {"x": _numbers(1, 64)}, "y")
    entry = GraphEntry(file="graphs/step.onnx", inputs={"x": "x"}, outputs={"y": "y"})
    graphs = OnnxGraphs({"step": content}, {"step": entry}, {}, None, threads)
    call = Call(
        graph="step",
        inputs={"x": Binding(source="state", name="x")},
        outputs={"y": Destination(state="x")},
    )
    loop = Loop(
        slots=(Slot(name="x", dtype="float32", shape=(1, 64)),),
        body=(Repeat(steps=("step",) * STEPS, bodies={"step": (call,)}),),
        results={"x": "x"},
    )

    def run() -> None:
        Run(loop, {}, graphs.engine(), {}, {}, {}, seed=0).execute()

    return _fastest(run) / STEPS

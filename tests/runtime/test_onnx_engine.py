"""The engine: buffers are reused, in-place slots share memory, weights exist once."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from optimize.runtime.driver import Run
from optimize.runtime.errors import CorruptBundle
from optimize.runtime.loop import Binding, Call, Destination, Loop, Repeat, Slot
from optimize.runtime.manifest import GraphEntry
from optimize.runtime.onnx_engine import OnnxEngine, OnnxGraphs
from optimize.runtime.tensors import StoredTensor


def info(name, shape=("n",), kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def graphs(stored=None, prepack=None, **models):
    """name → (nodes, inputs, outputs, initializers)."""
    protos, entries = {}, {}
    for name, (nodes, inputs, outputs, *initializers) in models.items():
        graph = helper.make_graph(nodes, name, inputs, outputs, *initializers)
        opsets = [helper.make_opsetid("", 23)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        protos[name] = model.SerializeToString()
        entries[name] = GraphEntry(
            file=f"graphs/{name}.onnx",
            inputs={item.name: item.name for item in inputs},
            outputs={item.name: item.name for item in outputs},
        )
    return OnnxGraphs(protos, entries, stored or {}, threads=1, prepack=prepack)


def increment(source="a", result="b"):
    one = helper.make_node("Constant", [], ["one"], value_float=1.0)
    return [one, helper.make_node("Add", [source, "one"], [result])], [info(source)], [info(result)]


def state(name):
    return Binding(source="state", name=name)


def run(loop, made, request=None):
    engine = OnnxEngine(made)
    dtypes = {name: str(array.dtype) for name, array in (request or {}).items()}
    done = Run(loop, {}, engine, {"n": 4}, request or {}, dtypes, seed=0)
    return engine, done


def test_a_loop_alternates_between_two_buffers_and_few_bindings():
    call = Call(graph="g", inputs={"a": state("x")}, outputs={"b": Destination(state="x")})
    loop = Loop(
        slots=(Slot(name="x", dtype="float32", shape=("n",)),),
        body=(Repeat(steps=("s",) * 100, bodies={"s": (call,)}),),
        results={"x": "x"},
    )
    engine, driver = run(loop, graphs(g=increment()))
    seen = set()
    driver.progress = lambda done, total: seen.add(id(driver._state["x"]))
    assert driver.execute()["x"].tolist() == [100.0] * 4
    assert len(seen) == 2
    assert len(engine._bindings["g"]) <= 3


def test_an_in_place_slot_keeps_one_buffer_and_the_scatter_writes_into_it():
    """The slot's memory never changes, and rows that are not written are not copied either."""
    scatter = helper.make_node("ScatterND", ["cache", "where", "rows"], ["cache_out"])
    model = (
        [scatter],
        [info("cache", ("n", 2)), info("where", (1, 1), TensorProto.INT64), info("rows", (1, 2))],
        [info("cache_out", ("n", 2))],
    )
    call = Call(
        graph="g",
        inputs={
            "cache": state("cache"),
            "where": Binding(source="request", name="where"),
            "rows": Binding(source="request", name="rows"),
        },
        outputs={"cache_out": Destination(state="cache")},
    )
    loop = Loop(
        slots=(Slot(name="cache", dtype="float32", shape=("n", 2), in_place=True),),
        body=(Repeat(steps=("s",) * 3, bodies={"s": (call,)}),),
        results={"cache": "cache"},
    )
    request = {"where": np.array([[2]]), "rows": np.array([[5, 6]], np.float32)}
    _, driver = run(loop, graphs(g=model), request)
    memories = []
    driver.progress = lambda done, total: memories.append(driver._state["cache"].memory.ctypes.data)
    assert driver.execute()["cache"].tolist() == [[0, 0], [0, 0], [5, 6], [0, 0]]
    assert len(set(memories)) == 1


def test_a_slot_that_starts_from_the_request_does_not_overwrite_it():
    """Two slots and a later call read the same request field."""
    body = Call(graph="g", inputs={"a": state("x")}, outputs={"b": Destination(state="x")})
    last = Call(
        graph="g",
        inputs={"a": Binding(source="request", name="start")},
        outputs={"b": Destination(state="y")},
    )
    start = Binding(source="request", name="start")
    loop = Loop(
        slots=(
            Slot(name="x", dtype="float32", shape=("n",), initial=start),
            Slot(name="y", dtype="float32", shape=("n",), initial=start),
        ),
        body=(Repeat(steps=("s",) * 5, bodies={"s": (body,)}), last),
        results={"x": "x", "y": "y"},
    )
    given = np.zeros(4, np.float32)
    _, driver = run(loop, graphs(g=increment()), {"start": given})
    results = driver.execute()
    assert results["x"].tolist() == [5.0] * 4
    assert results["y"].tolist() == [1.0] * 4
    assert not given.any()


def appending():
    """Three steps: x grows by one, its square is appended to `trace`."""
    call = Call(
        graph="g",
        inputs={"a": state("x")},
        outputs={"b": Destination(state="x"), "c": Destination(append="trace")},
    )
    nodes, inputs, outputs = increment()
    nodes.append(helper.make_node("Mul", ["b", "b"], ["c"]))
    loop = Loop(
        slots=(Slot(name="x", dtype="float32", shape=("n",)),),
        body=(Repeat(steps=("s",) * 3, bodies={"s": (call,)}),),
        results={"x": "x"},
    )
    return run(loop, graphs(g=(nodes, inputs, [*outputs, info("c")])))[1]


def test_appended_outputs_are_all_kept_with_the_batch_first():
    results = appending().execute()
    assert results["trace"].tolist() == [[1.0, 4.0, 9.0]] * 4
    assert results["x"].tolist() == [3.0] * 4


def test_a_run_pauses_after_each_appended_part():
    driver = appending()
    seen = []
    for _ in driver.steps():
        seen.append([part.array[0] for part in driver.appended["trace"]])
    assert seen == [[1.0], [1.0, 4.0], [1.0, 4.0, 9.0]]
    assert driver.results()["trace"].shape == (4, 3)


def test_a_run_that_is_not_stepped_on_makes_no_more_calls():
    driver = appending()
    steps = driver.steps()
    next(steps)
    steps.close()
    assert len(driver.appended["trace"]) == 1


def test_a_loop_ends_when_its_flag_is_set():
    nodes, inputs, outputs = increment()
    nodes += [
        helper.make_node("Constant", [], ["three"], value_float=3.0),
        helper.make_node("GreaterOrEqual", ["b", "three"], ["done"]),
    ]
    call = Call(
        graph="g",
        inputs={"a": state("x")},
        outputs={"b": Destination(state="x"), "done": Destination(state="done")},
    )
    loop = Loop(
        slots=(
            Slot(name="x", dtype="float32", shape=("n",)),
            Slot(name="done", dtype="bool", shape=("n",)),
        ),
        body=(Repeat(steps=("s",) * 50, bodies={"s": (call,)}, until="done"),),
        results={"x": "x"},
    )
    model = (nodes, inputs, [*outputs, info("done", kind=TensorProto.BOOL)])
    _, driver = run(loop, graphs(g=model))
    assert driver.execute()["x"].tolist() == [3.0] * 4


def test_sessions_share_the_memory_of_large_weights():
    weight = np.random.default_rng(0).standard_normal((256, 128)).astype(np.float32)
    tensor = TensorProto(
        name="w", data_type=1, dims=weight.shape, data_location=TensorProto.EXTERNAL
    )
    place = {"location": "weights.safetensors", "offset": "64", "length": str(weight.nbytes)}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    node = helper.make_node("Gemm", ["a", "w"], ["b"], transB=1)
    model = ([node], [info("a", ("n", 128))], [info("b", ("n", 256))], [tensor])
    stored = {"w": StoredTensor("float32", weight, 64)}
    made = graphs(stored, prepack=False, first=model, second=model)
    # So small a weight is repacked where nothing else is said.
    assert graphs(stored, first=model).shared == {"first": ()}
    assert made.shared == {"first": ("w",), "second": ("w",)}
    assert np.shares_memory(made.weight("w").memory, weight)
    engine = OnnxEngine(made)
    x = engine.upload(np.ones((2, 128), np.float32), "float32")
    for name in ("first", "second"):
        found = engine.download(engine.run(name, {"a": x}, {"b": None})["b"])
        np.testing.assert_allclose(
            found, np.ones((2, 128), np.float32) @ weight.T, rtol=1e-4, atol=1e-4
        )
    # The weight is read where it lies: a change shows without loading again.
    weight[:] = 0
    assert not engine.download(engine.run("first", {"a": x}, {"b": None})["b"]).any()


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int32", "bool"]
)
def test_values_survive_the_way_to_the_engine_and_back(dtype):
    engine = OnnxEngine(graphs(g=increment()))
    array = np.array([[0, 1, 1], [1, 0, 1]], np.float32 if dtype == "bfloat16" else dtype)
    handle = engine.upload(array, dtype)
    array[:] = 0
    back = engine.download(handle)
    assert back.tolist() == [[0, 1, 1], [1, 0, 1]]
    back[:] = 0
    assert engine.download(handle).any()
    assert engine.upload(np.array(2.0), "float32").value.shape() == []
    assert engine.zeros((2, 0), dtype).value.shape() == [2, 0]


def test_bytes_onnx_runtime_cannot_read_are_a_typed_error():
    with pytest.raises(CorruptBundle, match="graph g: ONNX Runtime .* refused it"):
        graphs(g=([helper.make_node("Concat", ["a"], ["b"])], [info("a")], [info("b")]))


def test_mutated_models_raise_our_errors_only():
    """C14: UnicodeDecodeError, too, becomes one of ours."""
    raw = helper.make_model(
        helper.make_graph(*increment()[:1], "g", *increment()[1:]),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=10,
    ).SerializeToString()
    onnx.load_from_string(raw)
    entry = {"g": GraphEntry(file="g.onnx", inputs={"a": "a"}, outputs={"b": "b"})}
    for place in range(0, len(raw), 2):
        damaged = raw[:place] + bytes([raw[place] ^ 0x91]) + raw[place + 1 :]
        try:
            OnnxGraphs({"g": damaged}, entry, {}, threads=1)
        except Exception as error:
            assert type(error).__module__ == "optimize.runtime.errors", repr(error)

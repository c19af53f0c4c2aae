"""Graph → ONNX. Weights stay outside, at given places of one safetensors file.

    layout = layout_weights(program.weights, used_weights(graph))
    model = graph_to_onnx(graph, "step", layout.places)
    model.model.SerializeToString()                 # kilobytes, whatever the weights weigh

Nodes are translated one by one from their traced shapes; nothing is traced again and no weight is
touched.
"""

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import fx

from optimize.export import onnx_lowering_layers as _layers  # noqa: F401  fills the table
from optimize.export import onnx_lowering_math as _math  # noqa: F401
from optimize.export.onnx_bfloat16 import compute_in_float32
from optimize.export.onnx_builder import DTYPES, MICROSOFT, OPSET, OnnxBuilder
from optimize.export.onnx_decompose import decompose, is_composite
from optimize.export.onnx_lowering import TABLE
from optimize.export.onnx_lowering_complex import COMPLEX_TABLE
from optimize.export.onnx_lowering_tensor import SKIPPED
from optimize.export.onnx_plugins import as_plugin
from optimize.export.onnx_simplify import simplified
from optimize.export.weights import Place
from optimize.ir.collectives import is_collective
from optimize.ir.errors import UnsupportedOpError
from optimize.ir.graph import Graph, Size
from optimize.ir.node_arguments import short_name
from optimize.kernels.catalog import ONNX_LOWERINGS

IR_VERSION = 10
"""The ONNX file format version; newer ones add nothing these graphs use."""


@dataclass(frozen=True)
class OnnxGraph:
    """A translated graph.

    Attributes:
        model: initializers point into the weights file; the checker has not seen it.
        inputs: input name → its name in the model, where a weight may have taken it.
        outputs: output name → its name in the model, where an input may have taken it.
    """

    model: onnx.ModelProto
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def graph_to_onnx(
    graph: Graph,
    name: str,
    places: Mapping[str, Place],
    *,
    standard: bool = False,
    plugins: Collection[str] = (),
) -> OnnxGraph:
    """Translates one graph.

    Args:
        graph: its nodes carry fake tensors in `meta["val"]`.
        name: the graph's name in the file.
        places: weight name → where its bytes lie; initializers get the place's own name, so tied
            weights are one initializer.
        standard: use the operators of the standard only, for others than ONNX Runtime.
        plugins: names of kernels, such as "optimize::tile_attention", that stay one node, for
            engines that have them as plugins.
    Raises:
        UnsupportedOpError: an op has no lowering; names op, node and source line.
    """
    check_no_collectives(graph, name)
    b = OnnxBuilder(standard, frozenset(plugins))
    values: dict[fx.Node, Any] = {}
    inputs: list[ir.Value] = []
    initializers: dict[str, ir.Value] = {}
    names = {symbol: dimension for dimension, symbol in graph.dimensions.items()}
    taken = {places[weight].name for weight in used_weights(graph)}
    for node in graph.graph.nodes:
        if node.op == "placeholder" and node.name not in graph.weights:
            values[node] = _input(b, node, names, taken)
            inputs.append(values[node])
    for node in graph.graph.nodes:
        if node.op == "placeholder" and node.name in graph.weights:
            if not node.users:
                continue
            place = places[graph.weights[node.name]]
            if place.name not in initializers:
                initializers[place.name] = _initializer(place)
            values[node] = initializers[place.name]
            b.declare(values[node], node.meta["val"])
        elif node.op == "call_function":
            values[node] = _translate(b, node, values)
            _declare(b, values[node], node)
        elif node.op not in ("placeholder", "output"):
            raise UnsupportedOpError(
                f"{name}: found node {node.name!r} of kind {node.op}, expected placeholders, "
                "function calls and one output; lift attributes to weights"
            )
    outputs = _outputs(b, graph, values, names, [*inputs, *initializers.values()])
    return OnnxGraph(
        model=compute_in_float32(_serialized(b, name, inputs, outputs, initializers)),
        inputs=_model_names(graph.inputs, inputs),
        outputs=_model_names(graph.outputs, outputs),
    )


def check_no_collectives(graph: Graph, name: str) -> None:
    """Refuses a graph that is one process's share of a model.

    Raises:
        UnsupportedOpError: says what to do instead.
    """
    node = next((node for node in graph.graph.nodes if is_collective(node)), None)
    if node is not None:
        raise UnsupportedOpError(
            f"{name}: found {short_name(node)} at node {node.name}: the graph is one process's "
            "share of the model, expected a whole one, as ONNX has no exchange between processes; "
            "remove `parallel` from the recipe to export it, or run it in PyTorch under torchrun"
        )


def used_weights(graph: Graph) -> list[str]:
    """Names of the weights that some node reads."""
    return [
        graph.weights[node.name]
        for node in graph.graph.nodes
        if node.op == "placeholder" and node.name in graph.weights and node.users
    ]


def _model_names(names: Sequence[str], values: Sequence[ir.Value]) -> dict[str, str]:
    return {name: str(value.name) for name, value in zip(names, values, strict=True)}


def free_name(name: str, taken: set[str], suffix: str) -> str:
    """The name, or one like it that nothing has yet; it is then taken."""
    while name in taken:
        name += suffix
    taken.add(name)
    return name


def _input(b: OnnxBuilder, node: fx.Node, names: Mapping[str, str], taken: set[str]) -> ir.Value:
    example = node.meta["val"]
    value = ir.Value(
        name=free_name(node.name, taken, "_in"),
        shape=_onnx_shape(example.shape, names),
        type=ir.TensorType(DTYPES[example.dtype]),
    )
    b.declare_input(value, example)
    return value


def _initializer(place: Place) -> ir.Value:
    tensor = ir.ExternalTensor(
        location=place.file,
        offset=place.offset,
        length=place.length,
        dtype=DTYPES[place.dtype],
        shape=ir.Shape(place.shape),
        name=place.name,
    )
    return ir.Value(
        name=place.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
    )


def _onnx_shape(shape: Any, names: Mapping[str, str]) -> ir.Shape:
    return ir.Shape([size if isinstance(size, int) else _dimension(size, names) for size in shape])


def _dimension(size: Size, names: Mapping[str, str]) -> str:
    text = str(size if isinstance(size, int) else size.node.expr)
    for symbol, dimension in names.items():
        text = text.replace(symbol, dimension)
    return text


def _translate(b: OnnxBuilder, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """The value, or tuple of values, that a call computes."""
    target: Any = node.target
    if target in SKIPPED:
        return None
    example = node.meta.get("val")
    if isinstance(example, (torch.SymInt, int)) and not isinstance(example, bool):
        return b.size(example)
    arguments = [_argument(b, item, values) for item in node.args]
    keywords = {name: _argument(b, item, values) for name, item in node.kwargs.items()}
    if target is operator.getitem:
        return arguments[0][arguments[1]]
    kernel = ONNX_LOWERINGS.get(getattr(target, "name", str)().partition(".")[0])
    if kernel is not None:
        plugin = as_plugin(b, target, arguments, keywords)
        return kernel(b, *arguments, **keywords) if plugin is None else plugin
    lowering = (COMPLEX_TABLE if _is_complex(node) else TABLE).get(target)
    if lowering is not None:
        result = lowering(b, node, *arguments, **keywords)
        if result is not NotImplemented:
            return result
    if is_composite(target) and (found := decompose(node)) is not None:
        return _inlined(b, node, found, values)
    # Importing torchlib takes seconds and most graphs never need it.
    from optimize.export import onnx_torchlib

    result = onnx_torchlib.lower(b, node, arguments, keywords)
    if result is None and (found := decompose(node)) is not None:
        return _inlined(b, node, found, values)
    if result is None:
        raise UnsupportedOpError(
            f"{target}: found no ONNX lowering for node {node.name!r} at {_source(node)}; "
            "enter one in optimize.export.onnx_lowering.TABLE, or decompose the op at capture"
        )
    return result


def _inlined(
    b: OnnxBuilder,
    node: fx.Node,
    found: tuple[list[fx.Node], fx.Graph],
    values: Mapping[fx.Node, Any],
) -> Any:
    tensors, graph = found
    inner: dict[fx.Node, Any] = {}
    places = iter(tensors)
    for step in graph.nodes:
        if step.op == "placeholder":
            inner[step] = values[next(places)]
        elif step.op == "call_function":
            step.meta.setdefault("stack_trace", node.meta.get("stack_trace"))
            inner[step] = _translate(b, step, inner)
            _declare(b, inner[step], step)
        elif step.op == "output":
            result = _argument(b, step.args[0], inner)
            return tuple(result) if isinstance(result, list) else result
    raise AssertionError("a graph without an output node")


def _is_complex(node: fx.Node) -> bool:
    examples = [item.meta.get("val") for item in (node, *node.all_input_nodes)]
    return any(isinstance(item, torch.Tensor) and item.is_complex() for item in examples)


def _argument(b: OnnxBuilder, argument: Any, values: Mapping[fx.Node, Any]) -> Any:
    if isinstance(argument, fx.Node):
        return values[argument]
    if isinstance(argument, torch.SymInt):
        return b.size(argument)
    if isinstance(argument, (list, tuple)):
        return [_argument(b, item, values) for item in argument]
    return argument


def _declare(b: OnnxBuilder, value: Any, node: fx.Node) -> None:
    example = node.meta.get("val")
    pairs = (
        zip(value, example or (), strict=True) if isinstance(value, tuple) else [(value, example)]
    )
    for item, traced in pairs:
        if isinstance(item, ir.Value) and isinstance(traced, torch.Tensor):
            b.declare(item, traced)


def _source(node: fx.Node) -> str:
    """The innermost source line recorded when the node was traced."""
    trace = str(node.meta.get("stack_trace") or node.stack_trace or "").strip().splitlines()
    files = [line.strip() for line in trace if line.strip().startswith("File ")]
    return files[-1] if files else "an unrecorded line"


def _outputs(
    b: OnnxBuilder,
    graph: Graph,
    values: Mapping[fx.Node, Any],
    names: Mapping[str, str],
    given: list[ir.Value],
) -> list[ir.Value]:
    """One value per output name; what is no node's own value, or repeated, is copied."""
    used: set[ir.Value] = {*given, *b.constants.values()}
    taken = {str(value.name) for value in used}
    outputs = []
    for name, node in graph.output_nodes().items():
        value = values[node]
        if value in used:
            value = ir.Value()
            b.nodes.append(ir.Node("", "Identity", [values[node]], outputs=[value]))
        used.add(value)
        example = node.meta["val"]
        value.name = free_name(name, taken, "_out")
        value.shape = _onnx_shape(example.shape, names)
        value.type = ir.TensorType(DTYPES[example.dtype])
        outputs.append(value)
    return outputs


def _serialized(
    b: OnnxBuilder,
    name: str,
    inputs: list[ir.Value],
    outputs: list[ir.Value],
    initializers: Mapping[str, ir.Value],
) -> onnx.ModelProto:
    named = {value.name for value in (*inputs, *outputs, *initializers.values())}
    named |= set(b.constants)
    kept = _reachable(b.nodes, outputs)
    count = 0
    for node in kept:
        for value in node.outputs:
            if value not in outputs:
                while (fresh := f"v{count}") in named:
                    count += 1
                value.name, count = fresh, count + 1
                value.shape = value.type = None
        node.name = f"{node.op_type}_{node.outputs[0].name}"
    read = {value for node in kept for value in node.inputs if value is not None}
    for constant, value in b.constants.items():
        value.name = constant
    tensors = [v for v in (*initializers.values(), *b.constants.values()) if v in read]
    domains = {"": OPSET} | ({MICROSOFT: 1} if any(n.domain == MICROSOFT for n in kept) else {})
    graph = ir.Graph(
        inputs, outputs, nodes=kept, initializers=tensors, opset_imports=domains, name=name
    )
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="optimize")
    return ir.serde.serialize_model(simplified(model))


def _reachable(nodes: list[ir.Node], outputs: list[ir.Value]) -> list[ir.Node]:
    """The nodes that an output depends on, in order."""
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if any(value in needed for value in node.outputs):
            kept.append(node)
            needed.update(value for value in node.inputs if value is not None)
    return kept[::-1]

"""The ONNX operators a bundle may hold, and what their nodes must look like.

These are the ones the exporter can write. The others are refused unseen: ONNX Runtime's kernels are
not made for hostile graphs, and those that networks seldom use are those that break. Fuzzing found
`Einsum`, `LpPool` and `TfIdfVectorizer` nodes that never end, and nodes of allowed operators that
end the process where an input or output that must be there is left out; the latter are what is
checked here.
"""

from collections.abc import Mapping

from optimize.runtime import onnx_wire as wire
from optimize.runtime.errors import UnsafeBundle

ANY = 2**31

_INPUTS: Mapping[tuple[int, int], str] = {
    (0, 0): "Constant",
    (1, 1): """
        Abs Acos Acosh ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BitwiseNot Cast Ceil Celu
        ConstantOfShape Cos Cosh DepthToSpace DynamicQuantizeLinear Elu Erf Exp EyeLike Flatten
        Floor Gelu GlobalAveragePool HardSigmoid HardSwish Identity If IsInf IsNaN LeakyRelu Log
        LogSoftmax MaxPool Mish Neg NonZero Not Reciprocal Relu Round Selu Shape Sigmoid Sign Sin
        Sinh Size Softmax Softplus Softsign SpaceToDepth Sqrt Tan Tanh Transpose""",
    (1, 2): """
        ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
        ReduceSumSquare Split Squeeze Trilu""",
    (1, 3): "Clip",
    (1, 4): "Resize",
    (2, 2): """
        Add And BitShift BitwiseAnd BitwiseOr BitwiseXor CastLike CumSum Div Equal Expand Gather
        GatherElements GatherND Greater GreaterOrEqual GridSample Less LessOrEqual MatMul Mod Mul Or
        Pow PRelu Reshape RMSNormalization Sub Tile TopK Unsqueeze Xor""",
    (2, 3): "Conv ConvTranspose DequantizeLinear Gemm LayerNormalization QuantizeLinear",
    (2, 4): "MatMulInteger Pad",
    (3, 3): """
        GroupNormalization InstanceNormalization Range ScatterElements ScatterND Where""",
    (3, 5): "Slice",
    (3, 6): "Attention",
    (5, 5): "BatchNormalization",
    (ANY, ANY): "Concat Max Mean Min Sum",
}  # fmt: skip
"""(inputs that must be there, most inputs) → operators; `ANY` stands for one or more, all there."""

MICROSOFT: Mapping[str, tuple[int, int]] = {"GroupQueryAttention": (7, 14)}
"""The same for the domain com.microsoft; of the seven, key and value may be left out."""

OPERATORS: Mapping[str, tuple[int, int]] = {
    name: inputs for inputs, names in _INPUTS.items() for name in names.split()
} | {"Loop": (0, ANY)}

DOMAINS: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "": OPERATORS,
    "ai.onnx": OPERATORS,
    "com.microsoft": MICROSOFT,
}

OUTPUTS: Mapping[str, tuple[int, int]] = {
    "Attention": (1, 4),
    "DynamicQuantizeLinear": (3, 3),
    "GroupQueryAttention": (1, 5),
    "If": (ANY, ANY),
    "LayerNormalization": (1, 3),
    "Loop": (ANY, ANY),
    "MaxPool": (1, 2),
    "Split": (ANY, ANY),
    "TopK": (2, 2),
}
"""(outputs that must have a name, most outputs) of operators that have not just one."""

_OPTIONAL_EARLY: Mapping[str, frozenset[int]] = {"GroupQueryAttention": frozenset({1, 2, 3, 4})}
"""Inputs before the last required one that may be left out."""

WINDOWS = frozenset({"kernel_shape", "strides", "dilations", "pads", "output_padding"})
"""Attributes with a length in each dimension, over which kernels loop."""

MAX_WINDOW = 4096
MAX_NAMES = 4096


def check_node(node: wire.Node) -> None:
    """Refuses a node of another operator, or one that lacks what its operator takes for granted.

    Raises:
        UnsafeBundle: names the node.
    """
    where = f"node {node.name!r}"
    operators = DOMAINS.get(node.domain)
    if operators is None:
        raise UnsafeBundle(
            f"found domain {node.domain!r} at {where}, expected the standard operators"
        )
    inputs = operators.get(node.op_type)
    if inputs is None:
        raise UnsafeBundle(f"found op {node.op_type} at {where}, which is not allowed")
    optional = _OPTIONAL_EARLY.get(node.op_type, frozenset())
    _check_names(node, where, "inputs", node.inputs, inputs, optional)
    outputs = OUTPUTS.get(node.op_type, (1, 1))
    _check_names(node, where, "outputs", node.outputs, outputs, frozenset())
    _check_attributes(node, where)


def _check_names(
    node: wire.Node,
    where: str,
    what: str,
    names: tuple[str, ...],
    allowed: tuple[int, int],
    optional: frozenset[int],
) -> None:
    """Refuses too many or too few inputs or outputs, and one left out that must be there."""
    required, most = allowed
    if required == ANY:
        required = max(1, len(names))
    absent = any(
        place not in optional and not (place < len(names) and names[place])
        for place in range(required)
    )
    if absent or len(names) > min(most, MAX_NAMES):
        found = [place for place, name in enumerate(names) if name]
        least = "1" if allowed[0] == ANY else str(allowed[0])
        last = "any number" if most == ANY else str(most)
        raise UnsafeBundle(
            f"found {node.op_type} with {what} {found[:20]} at {where}, expected {least} to "
            f"{last}, none of those left out"
        )


def _check_attributes(node: wire.Node, where: str) -> None:
    for name, numbers in node.numbers.items():
        if name in WINDOWS and not all(0 <= number <= MAX_WINDOW for number in numbers):
            raise UnsafeBundle(
                f"found {name} {list(numbers)[:8]} at {where}, expected numbers in "
                f"[0, {MAX_WINDOW}]"
            )
    parts = node.numbers.get("num_outputs")
    if node.op_type == "Split" and parts is not None and parts != (len(node.outputs),):
        raise UnsafeBundle(
            f"found Split into {list(parts)} with {len(node.outputs)} outputs at {where}"
        )

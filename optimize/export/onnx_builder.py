"""Makes the nodes of one ONNX graph; equal nodes are made once.

Sizes a request decides are expressions over the sizes of the graph's inputs. `OnnxBuilder.size`
turns such an expression into nodes, so a lowering needs only the traced shapes of its operands and
result, never the traced nodes that computed them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import sympy
import torch

from optimize.ir.errors import UnsupportedOpError
from optimize.ir.graph import Size
from optimize.kernels.onnx_ops import Size as OnnxSize

OPSET = 23
"""The newest opset whose operators ONNX Runtime 1.32 has CPU kernels for."""

MICROSOFT = "com.microsoft"

DTYPES: Mapping[torch.dtype, ir.DataType] = {
    torch.float64: ir.DataType.DOUBLE,
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
    torch.int16: ir.DataType.INT16,
    torch.int8: ir.DataType.INT8,
    torch.uint8: ir.DataType.UINT8,
    torch.bool: ir.DataType.BOOL,
    torch.complex64: ir.DataType.FLOAT,
    torch.complex128: ir.DataType.DOUBLE,
}
"""A complex tensor is a real one with a last dimension of 2."""


class OnnxBuilder:
    """The nodes of a graph, in order; implements `optimize.kernels.onnx_ops.OnnxOps`."""

    def __init__(self, standard: bool = False, plugins: frozenset[str] = frozenset()) -> None:
        self.standard = standard
        self.plugins = plugins
        self.nodes: list[ir.Node] = []
        self.constants: dict[str, ir.Value] = {}
        self._made: dict[Any, tuple[ir.Value, ...]] = {}
        self._traced: dict[ir.Value, torch.Tensor] = {}
        # Symbol → the graph input and axis whose size is factor * symbol.
        self._symbols: dict[sympy.Symbol, tuple[ir.Value, int, int]] = {}

    def op(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """One node with one output; attributes that are None are left out."""
        return self.op_many(op_type, *inputs, outputs=1, domain=domain, **attributes)[0]

    def op_many(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: int,
        domain: str = "",
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """One node with several outputs."""
        given = {name: item for name, item in sorted(attributes.items()) if item is not None}
        key = (op_type, domain, inputs, outputs, tuple((k, _hashable(v)) for k, v in given.items()))
        if key not in self._made:
            operands = list(inputs)
            while operands and operands[-1] is None:
                operands.pop()
            node = ir.Node(
                domain,
                op_type,
                operands,
                ir.convenience.convert_attributes(given),
                num_outputs=outputs,
            )
            self.nodes.append(node)
            self._made[key] = tuple(node.outputs)
        return self._made[key]

    def constant(self, number: Any, dtype: torch.dtype | ir.DataType) -> ir.Value:
        """A number or array of numbers as an inline constant."""
        kind = dtype if isinstance(dtype, ir.DataType) else DTYPES[dtype]
        array = np.asarray(number).astype(kind.numpy())
        name = f"constant_{kind.name.lower()}_{_label(array)}"
        key = ("constant", kind, array.shape, array.tobytes())
        if key not in self._made:
            if name in self.constants:
                name = f"{name}_{len(self.constants)}"
            tensor = ir.tensor(array, dtype=kind, name=name)
            value = ir.Value(
                name=name, const_value=tensor, type=ir.TensorType(kind), shape=ir.Shape(array.shape)
            )
            self.constants[name] = value
            self._made[key] = (value,)
        return self._made[key][0]

    def integers(self, numbers: Sequence[int]) -> ir.Value:
        """A constant int64 vector."""
        return self.constant(np.array(list(numbers), dtype=np.int64), torch.int64)

    def cast(self, value: ir.Value, dtype: torch.dtype) -> ir.Value:
        """A Cast node."""
        return self.op("Cast", value, to=int(DTYPES[dtype]))

    def cast_like(self, value: ir.Value, other: ir.Value) -> ir.Value:
        """`value` in the dtype of `other`; both came from the traced graph."""
        dtype = self._traced[other].dtype
        return value if self._traced[value].dtype == dtype else self.cast(value, dtype)

    def number_like(self, number: float, other: ir.Value) -> ir.Value:
        """A constant scalar in the dtype of a value that came from the traced graph."""
        return self.constant(number, self._traced[other].dtype)

    def dtype(self, value: ir.Value) -> str:
        """The dtype of a value that came from the traced graph, such as "float32"."""
        return str(self._traced[value].dtype).removeprefix("torch.")

    def declare(self, value: ir.Value, traced: torch.Tensor) -> None:
        """Records the traced shape and dtype of a value."""
        self._traced[value] = traced

    def declare_input(self, value: ir.Value, traced: torch.Tensor) -> None:
        """Records a graph input; its sizes define the symbols they contain."""
        self.declare(value, traced)
        for axis, size in enumerate(traced.shape):
            if isinstance(size, int):
                continue
            expression = size.node.expr
            symbols = expression.free_symbols
            if len(symbols) != 1:
                continue
            (symbol,) = symbols
            factor = expression.coeff(symbol)
            plain = expression == factor * symbol and factor.is_Integer
            known = self._symbols.get(symbol)
            if plain and (known is None or int(factor) < known[2]):
                self._symbols[symbol] = (value, axis, int(factor))

    def sizes(self, value: ir.Value) -> tuple[OnnxSize, ...]:
        """The shape of a value that came from the traced graph."""
        return tuple(self.size(size) for size in self._traced[value].shape)

    def size(self, size: Size | sympy.Expr) -> OnnxSize:
        """A size as a number, or as an int64 scalar."""
        if isinstance(size, int):
            return size
        expression = size.node.expr if isinstance(size, torch.SymInt) else size
        if expression.is_Integer:
            return int(expression)
        return self._scalar(expression)

    def shape(self, sizes: Sequence[OnnxSize]) -> ir.Value:
        """The sizes as one int64 vector: constant, with at most one size left to infer."""
        unknown = [position for position, size in enumerate(sizes) if not isinstance(size, int)]
        if not unknown:
            return self.integers([int(size) for size in sizes])
        return self._concatenated(sizes)

    def reshape(self, value: ir.Value, shape: Sequence[Size]) -> ir.Value:
        """`value` with another shape; a single symbolic size is inferred by ONNX."""
        unknown = [position for position, size in enumerate(shape) if not isinstance(size, int)]
        if len(unknown) == 1 and 0 not in shape:
            return self.op(
                "Reshape", value, self.integers([s if isinstance(s, int) else -1 for s in shape])
            )
        return self.op("Reshape", value, self.shape([self.size(size) for size in shape]))

    def range(self, size: OnnxSize) -> ir.Value:
        """The int64 vector 0, 1 … size - 1."""
        if isinstance(size, int):
            return self.integers(range(size))
        zero, one = self.constant(0, torch.int64), self.constant(1, torch.int64)
        return self.op("Range", zero, size, one)

    def product(self, sizes: Sequence[OnnxSize]) -> OnnxSize:
        """The product of sizes; 1 for none."""
        known = int(np.prod([size for size in sizes if isinstance(size, int)], dtype=np.int64))
        unknown = [size for size in sizes if not isinstance(size, int)]
        if not unknown:
            return known
        result = unknown[0]
        for size in unknown[1:]:
            result = self.op("Mul", result, size)
        return result if known == 1 else self.op("Mul", result, self.constant(known, torch.int64))

    def _concatenated(self, sizes: Sequence[OnnxSize]) -> ir.Value:
        axis = self.integers([0])
        parts = [
            self.integers([size]) if isinstance(size, int) else self.op("Unsqueeze", size, axis)
            for size in sizes
        ]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def _scalar(self, expression: sympy.Expr) -> ir.Value:
        """Nodes that compute a size expression."""
        if expression.is_Integer:
            return self.constant(int(expression), torch.int64)
        if expression.is_Symbol:
            return self._symbol(expression)
        arguments = [self._scalar(argument) for argument in expression.args]
        op_type = _SIZE_OPS.get(type(expression).__name__)
        if op_type is None:
            raise UnsupportedOpError(
                f"size {expression}: found {type(expression).__name__}, expected sums, products, "
                "quotients and extrema of input sizes; fix one of these sizes before the export"
            )
        result = arguments[0]
        for argument in arguments[1:]:
            result = self.op(op_type, result, argument)
        return result

    def _symbol(self, symbol: sympy.Symbol) -> ir.Value:
        if symbol not in self._symbols:
            raise UnsupportedOpError(
                f"size {symbol}: found no graph input with a dimension of this size, expected one; "
                "it depends on the data"
            )
        value, axis, factor = self._symbols[symbol]
        vector = self.op("Shape", value, start=axis, end=axis + 1)
        scalar = self.op("Squeeze", vector, self.integers([0]))
        return scalar if factor == 1 else self.op("Div", scalar, self.constant(factor, torch.int64))


_SIZE_OPS = {
    "Add": "Add",
    "Mul": "Mul",
    "FloorDiv": "Div",
    "CleanDiv": "Div",
    "IntTrueDiv": "Div",
    "Mod": "Mod",
    "PythonMod": "Mod",
    "Max": "Max",
    "Min": "Min",
}


def _hashable(attribute: Any) -> Any:
    if isinstance(attribute, (list, tuple)):
        return tuple(attribute)
    return attribute


def _label(array: np.ndarray[Any, Any]) -> str:
    """A readable part of a constant's name."""
    if array.size == 1:
        text = str(array.reshape(())).replace("-", "m").replace(".", "p").replace("+", "")
        return text if array.ndim == 0 else f"v{text}"
    return "x".join(map(str, array.shape)) + (
        "_" + "_".join(str(n).replace("-", "m") for n in array.reshape(-1))
        if array.size <= 6 and array.dtype.kind == "i"
        else ""
    )

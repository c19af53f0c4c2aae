"""What a kernel's `onnx_lowering.py` may use to make ONNX nodes.

The exporter implements it. Equal nodes are made once: two lowerings that compute the same index
from the same inputs share the nodes.
"""

from collections.abc import Sequence
from typing import Any, Protocol

Value = Any
"""A value of the ONNX graph being built."""

Size = int | Value
"""A size that is known, or an int64 scalar of the graph."""


class OnnxOps(Protocol):
    """Makes nodes of one ONNX graph.

    `standard`: whether only operators of the standard may be used, none of ONNX Runtime's own.
    """

    standard: bool

    def op(self, op_type: str, *inputs: Value | None, domain: str = "", **attributes: Any) -> Value:
        """One node with one output."""
        ...

    def op_many(
        self,
        op_type: str,
        *inputs: Value | None,
        outputs: int,
        domain: str = "",
        **attributes: Any,
    ) -> tuple[Value, ...]:
        """One node with several outputs."""
        ...

    def integers(self, numbers: Sequence[int]) -> Value:
        """A constant int64 vector."""
        ...

    def cast_like(self, value: Value, other: Value) -> Value:
        """`value` in the dtype of `other`; both came from the traced graph."""
        ...

    def number_like(self, number: float, other: Value) -> Value:
        """A constant scalar in the dtype of a value that came from the traced graph."""
        ...

    def dtype(self, value: Value) -> str:
        """The dtype of a value that came from the traced graph, such as "float32"."""
        ...

    def sizes(self, value: Value) -> tuple[Size, ...]:
        """The shape of a value that came from the traced graph."""
        ...

    def shape(self, sizes: Sequence[Size]) -> Value:
        """The sizes as one int64 vector."""
        ...

    def range(self, size: Size) -> Value:
        """The int64 vector 0, 1 … size - 1."""
        ...

    def product(self, sizes: Sequence[Size]) -> Size:
        """The product of sizes; 1 for none."""
        ...

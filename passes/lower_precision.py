"""Runs matrix products, convolutions and attention in half precision.

    linear(x: float32, w: float32)   ───▶   linear(cast(x): float16, w: float16)
    layer_norm(y: float32)                  layer_norm(cast(y): float32)

Weights that products read are stored in half precision, which halves the bundle. Norms, sums of the
residual stream, sampling and the solver keep the dtype they were traced in, and so do the fields,
results and state of the loop: key-value caches stay as they are.

Changes: graphs with products, and their weights.
Declines when: no graph has a product in float32 or float64.
Numerics: approximate; the change is measured and held against the budget.
Source: the dtype policy of `torch.autocast`, with half-precision weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

import torch

from optimize.ir.exporting import Target
from optimize.ir.graph import Graph
from optimize.ir.low_precision import in_low_precision, lowered_weights
from optimize.ir.program import Program
from optimize.ir.torch_engine import TORCH_DTYPES
from optimize.passes.choices import Choice, OneOf
from optimize.passes.pass_base import Numerics, Pass, Rewritten

Dtype = Literal["float16", "bfloat16", "float32"]


@dataclass(frozen=True)
class LowerPrecision(Pass):
    """Options.

    Args:
        dtype: "float16" has 11 significant bits and ends at 65504; "bfloat16" has 8 and the range
            of float32; "float32" changes nothing.
    """

    dtype: Dtype = "bfloat16"

    numerics: ClassVar[Numerics] = "approximate"

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            raise ValueError(
                f"dtype: found {self.dtype!r}, expected one of {', '.join(get_args(Dtype))}"
            )

    @classmethod
    def choices(cls, program: Program, target: Target) -> Mapping[str, Choice]:
        """Both kinds of half precision; none for "onnx", which CPUs run, slower than float32."""
        return {} if target == "onnx" else {"dtype": OneOf(("float16", "bfloat16"))}

    def declines(self, program: Program) -> str | None:
        if self.dtype != "float32" and not lowered_weights(program.graphs):
            return "no graph has a matrix product of float32 weights"
        return None

    def rewrite(self, program: Program) -> Rewritten:
        if self.dtype == "float32":
            return Rewritten(program, ())
        dtype = TORCH_DTYPES[self.dtype]
        lowered = lowered_weights(program.graphs)
        graphs: dict[str, Graph] = {}
        sites: list[str] = []
        for role, graph in program.graphs.items():
            graphs[role], found = in_low_precision(graph, dtype, lowered)
            sites += [f"{role}.{name}" for name in found]
        weights = {
            name: weight.to(dtype) if name in lowered else weight
            for name, weight in program.weights.items()
        }
        details = _details(program.weights, lowered)
        # The decoder without caches is not called; passes make graphs from it, which come earlier.
        new = replace(program, graphs=graphs, weights=weights, decoder=None)
        return Rewritten(new, tuple(sites), details)

    def identity(self) -> Self:
        return replace(self, dtype="float32")


def _details(weights: Mapping[str, torch.Tensor], lowered: frozenset[str]) -> dict[str, Any]:
    before = sum(weight.nbytes for weight in weights.values())
    saved = sum(weights[name].nbytes - 2 * weights[name].numel() for name in lowered)
    return {"weight_bytes_before": before, "weight_bytes_after": before - saved}

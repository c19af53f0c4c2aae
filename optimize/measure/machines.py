"""Machines by name: what they can do per second, for predictions of time.

The rates of the GPUs are those of their makers' data sheets: dense tensor cores, not the doubled
figures for sparse matrices, and sums in single precision. "float32" is TF32 where there is such,
which TensorRT, and ONNX Runtime on CUDA, compute products in unless they are told otherwise. No
GPU's row was measured by us.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

REACHED = 0.7
"""Assumed share of the data sheet's rate that large products reach on a GPU."""

STREAMED = 0.85
"""Assumed share of the data sheet's bandwidth that kernels reach on a GPU."""

LAUNCH_SECONDS = 3e-6
"""Assumed time from one kernel to the next inside a CUDA graph; 2 to 5 us are usual."""

CALL_SECONDS = 20e-6
"""Assumed time to start one CUDA graph, with its inputs bound."""

TILE_ROWS = 32.0
"""Assumed rows at which a product reaches half its rate on a GPU; tiles have 64 to 128 rows."""


@dataclass(frozen=True)
class Machine:
    """What a machine can do.

    Attributes:
        name: as users write it.
        flops_per_second: dtype → rate of large products; another dtype has that of "float32".
        bytes_per_second: bandwidth of the memory.
        launch_seconds: from one kernel, or one op of the engine, to the next.
        call_seconds: one engine call, besides what its graph does.
        half_rows: at this many rows a product has half its rate; 0 means full rate always.
        fuses: a chain of elementwise ops is one kernel, which reads its inputs once, and moving
            data without arithmetic changes strides only.
        cache_bytes: a kernel whose tensors fit into so many bytes finds all but weights in the
            cache, and those too where all weights of its graph fit; 0 means all from memory.
        element_seconds: kind of kernel (`optimize.measure.kernels`) → seconds per element, besides
            the time of its flops; a kind without one is as fast as memory.
        kind_launch_seconds: kind of kernel → its own `launch_seconds`, where it is another.
    """

    name: str
    flops_per_second: Mapping[str, float]
    bytes_per_second: float
    launch_seconds: float
    call_seconds: float
    half_rows: float = 0.0
    fuses: bool = True
    cache_bytes: float = 0.0
    element_seconds: Mapping[str, float] = field(default_factory=dict)
    kind_launch_seconds: Mapping[str, float] = field(default_factory=dict)

    def rate(self, dtype: str, rows: float) -> float:
        """FLOPs per second of a product.

        Args:
            dtype: of its operands, such as "float16".
            rows: its least dimension, >= 1; infinite for what is no product.
        """
        peak = self.flops_per_second.get(dtype, self.flops_per_second["float32"])
        return peak / (1.0 + self.half_rows / rows)


def _gpu(name: str, single: float, half: float, bandwidth: float, bfloat16: bool = True) -> Machine:
    """A GPU from its data sheet: TFLOP/s in TF32 (or float32) and float16, GB/s."""
    rates = {"float32": single, "float16": half, "bfloat16": half if bfloat16 else single}
    return Machine(
        name=name,
        flops_per_second={dtype: REACHED * rate * 1e12 for dtype, rate in rates.items()},
        bytes_per_second=STREAMED * bandwidth * 1e9,
        launch_seconds=LAUNCH_SECONDS,
        call_seconds=CALL_SECONDS,
        half_rows=TILE_ROWS,
    )


_GPUS = (
    # NVIDIA T4 data sheet (2019); Turing has neither TF32 nor bfloat16.
    _gpu("T4", 8.1, 65, 320, bfloat16=False),
    # NVIDIA A100 data sheet (2021), SXM.
    _gpu("A100 40GB SXM", 156, 312, 1555),
    _gpu("A100 80GB SXM", 156, 312, 2039),
    # NVIDIA L4 data sheet (2023): half of its figures, which are "with sparsity".
    _gpu("L4", 60, 121, 300),
    # NVIDIA L40S data sheet (2023).
    _gpu("L40S", 183, 362, 864),
    # NVIDIA Ada GPU architecture white paper 2.1, appendix A: sums in float32.
    _gpu("RTX 4090", 82.6, 165.2, 1008),
    # NVIDIA RTX Blackwell GPU architecture white paper 1.1, appendix A: sums in float32.
    _gpu("RTX 5090", 104.8, 209.5, 1792),
    # NVIDIA H100 data sheet (2023), SXM: half of its figures, which are "with sparsity".
    _gpu("H100 SXM", 494.5, 989.5, 3350),
    # NVIDIA H200 data sheet (2024), SXM: half of its figures, which are "with sparsity".
    _gpu("H200", 494.5, 989.5, 4800),
    # NVIDIA Blackwell architecture brief (2024), HGX B200 at 1000 W: its dense figures.
    _gpu("B200", 1100, 2250, 8000),
)

MACHINES: Mapping[str, Machine] = {machine.name: machine for machine in _GPUS}
"""Name → GPU. Their predictions are unmeasured."""

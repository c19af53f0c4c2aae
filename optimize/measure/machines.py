"""What machines can do, as far as a prediction of time needs it: GPUs by name, from data sheets.

Rates are dense ones of tensor cores, accumulating in float32; float32 itself is taken at TF32 where
there are such cores, as PyTorch and TensorRT compute it when they are allowed to.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from optimize.ir.errors import RecipeError

THIS_CPU = "this-cpu"


@dataclass(frozen=True)
class Machine:
    """A machine of the cost model.

    Attributes:
        name: as a reader knows it.
        flops_per_second: dtype of products → operations per second, at most.
        bytes_per_second: of its memory, or of its cache where the model's tensors stay there.
        launch_seconds: of one op beside its work.
        call_seconds: of one engine call and the loop around it.
        efficiency: share of the highest rate that real products reach, in (0, 1].
        row_efficiency: (rows, share of the rate of many rows), rows increasing; between them it is
            interpolated over the logarithm. Empty where few rows are bound by memory alone.
        attention_efficiency: share of the rate that attention reaches, in (0, 1].
        element_seconds: of a number that goes through an exponential, a sine or the like.
        fuses: elementwise ops run with what makes their input; else each is an op.
        copies: reordering axes and cutting tensors moves memory, as ONNX Runtime does it.
    """

    name: str
    flops_per_second: Mapping[str, float]
    bytes_per_second: float
    launch_seconds: float
    call_seconds: float
    efficiency: float = 1.0
    row_efficiency: tuple[tuple[float, float], ...] = ()
    attention_efficiency: float = 1.0
    element_seconds: float = 0.0
    fuses: bool = False
    copies: bool = False

    def rate(self, dtype: str) -> float:
        """Operations per second in a dtype; of float32 where the machine has no faster way."""
        return self.flops_per_second.get(dtype, self.flops_per_second["float32"])


def _gpu(name: str, float32: float, half: float, gigabytes: float) -> Machine:
    """A GPU: teraflops of TF32 (or float32) and of float16 products, gigabytes per second."""
    rates = {"float32": float32 * 1e12, "float16": half * 1e12, "bfloat16": half * 1e12}
    return Machine(
        name,
        MappingProxyType(rates),
        gigabytes * 1e9,
        # Kernels inside a CUDA graph follow one another after about two microseconds; replaying
        # the graph and the loop around it take about thirty. Both are assumptions.
        launch_seconds=2e-6,
        call_seconds=30e-6,
        efficiency=0.6,
        attention_efficiency=0.5,
        fuses=True,
    )


# NVIDIA's data sheets; dense rates, half of those that are printed "with sparsity".
MACHINES: Mapping[str, Machine] = MappingProxyType(
    {
        machine.name: machine
        for machine in (
            _gpu("T4", 8.1, 65, 320),
            _gpu("L4", 60, 121, 300),
            _gpu("L40S", 183, 362, 864),
            _gpu("A100 40GB", 156, 312, 1555),
            _gpu("A100 80GB", 156, 312, 2039),
            _gpu("H100 SXM", 495, 989, 3350),
            _gpu("H200", 495, 989, 4800),
            _gpu("B200", 1100, 2250, 8000),
            _gpu("RTX 4090", 82.6, 165, 1008),
            _gpu("RTX 5090", 105, 210, 1792),
        )
    }
)


def find_machine(name: str) -> Machine:
    """A GPU by its name, or by a part of it that no other has; case does not matter.

    Raises:
        RecipeError: names the known ones.
    """
    wanted = _plain(name)
    exact = [machine for key, machine in MACHINES.items() if _plain(key) == wanted]
    partly = [machine for key, machine in MACHINES.items() if wanted and wanted in _plain(key)]
    found = exact or partly
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        names = ", ".join(machine.name for machine in found)
        raise RecipeError(f"machine {name!r}: found {names}, expected one of them")
    known = [THIS_CPU, *MACHINES]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f". Did you mean {close[0]}?" if close else ""
    raise RecipeError(f"unknown machine {name!r}; known machines: {', '.join(known)}{hint}")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())

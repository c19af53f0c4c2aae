"""Predicts the seconds of graphs and requests on a machine, from FLOPs, bytes and launches.

    seconds of a call = call + sum over kernels of
        launches * launch + max(flops / rate(rows) + elements * per element, bytes / bandwidth)

with bytes that lie in a cache left out where the machine has one.

`rate(rows)` = peak * rows / (rows + half rows): a product with few rows is slower. `per element` is
zero on GPUs, where such work hides behind memory. What a kernel is, `optimize.measure.kernels`
says; what machines can do, `optimize.measure.machines` and, for this CPU, a calibration on
synthetic graphs. docs/cost_model.md has its error against measurement.
"""

import difflib
import math

from optimize.ir.errors import RecipeError
from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.measure.cost import program_calls
from optimize.measure.kernels import Kernel, graph_kernels
from optimize.measure.machines import MACHINES, Machine
from optimize.measure.this_cpu import this_cpu

__all__ = [
    "MACHINES",
    "Machine",
    "error_stated",
    "kernel_seconds",
    "machine_named",
    "predict_graph",
    "predict_seconds",
    "predictions",
    "this_cpu",
]

THIS_CPU = "this-cpu"

MEDIAN_ERROR = 0.08
"""Of the ratio of a request's seconds after a recipe to those before, over the zoo on a CPU: see
docs/cost_model.md."""


def kernel_seconds(kernel: Kernel, machine: Machine, cached: bool = False) -> float:
    """Seconds of one kernel.

    Args:
        cached: the weights of the graph are in the cache.
    """
    computing = kernel.flops / machine.rate(kernel.dtype, kernel.rows)
    computing += kernel.elements * machine.element_seconds.get(kernel.kind, 0.0)
    launch = machine.kind_launch_seconds.get(kernel.kind, machine.launch_seconds)
    starting = launch + (kernel.launches - 1) * machine.launch_seconds
    streamed = kernel.bytes
    if kernel.bytes - kernel.weight_bytes <= machine.cache_bytes:
        streamed = 0.0 if cached else kernel.weight_bytes
    return starting + max(computing, streamed / machine.bytes_per_second)


def predict_graph(graph: Graph, machine: Machine) -> float:
    """Seconds of one call of a graph, at the traced sizes."""
    parts = graph_kernels(graph, machine.fuses)
    weights = math.fsum(item.weight_bytes for item in parts)
    cached = weights <= machine.cache_bytes
    return machine.call_seconds + math.fsum(kernel_seconds(item, machine, cached) for item in parts)


def predict_seconds(program: Program, machine: Machine) -> float:
    """Seconds of one request, at the traced batch; `until` is taken as never true."""
    calls = program_calls(program).items()
    return math.fsum(
        count * predict_graph(program.graphs[name], machine) for name, count in calls if count
    )


def predictions(program: Program) -> dict[str, float]:
    """GPU → predicted seconds of one request, over `MACHINES`."""
    return {name: predict_seconds(program, machine) for name, machine in MACHINES.items()}


def error_stated(machine: Machine) -> str:
    """How far predictions for a machine are to be trusted, in words."""
    measured = f"median error of ratios {MEDIAN_ERROR:.0%} on a CPU over the zoo"
    if machine.name in MACHINES:
        return f"predicted; {measured}, unmeasured on GPUs"
    return f"predicted; {measured}"


def machine_named(name: str) -> Machine:
    """A machine by name: "this-cpu", or a GPU, whatever its case, spaces and dashes.

    A part that only one GPU has in its name is enough: "h100", "4090".

    Raises:
        RecipeError: the name is unknown, or of several; lists those that are known.
    """
    if _plain(name) == _plain(THIS_CPU):
        return this_cpu()
    known = {_plain(item): machine for item, machine in MACHINES.items()}
    if _plain(name) in known:
        return known[_plain(name)]
    meant = [machine for item, machine in known.items() if _plain(name) and _plain(name) in item]
    if len(meant) == 1:
        return meant[0]
    listed = ", ".join([THIS_CPU, *MACHINES])
    if meant:
        several = " or ".join(machine.name for machine in meant)
        raise RecipeError(f"machine {name!r}: found {several}, expected one of {listed}; say which")
    close = difflib.get_close_matches(_plain(name), [_plain(THIS_CPU), *known], n=1, cutoff=0.3)
    nearest = known[close[0]].name if close and close[0] in known else THIS_CPU
    suggestion = f". Did you mean {nearest}?" if close else ""
    raise RecipeError(f"unknown machine {name!r}, expected one of {listed}{suggestion}")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())

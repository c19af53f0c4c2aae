"""What a bundle promised when it was made, in a form that can be checked again later.

A stored example is one request and the results that the program gave for it in PyTorch. A speed is
the time of that request divided by the time of a fixed piece of work run in turns with it, so that
a machine that is busy, or throttled, slows both.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.measure.quality import bootstrap_interval
from optimize.measure.timing import compare, interleaved_seconds
from optimize.runtime import machine
from optimize.runtime.bundle import read_file
from optimize.runtime.errors import CorruptBundle
from optimize.runtime.tensors import ITEM_DTYPES, read_tensors, strict_json, tensors_header

EXAMPLE_FILE = "example.safetensors"
EXAMPLE_LIMIT = 1e-4
"""Relative error of an example's results, unless lowering the precision changed more."""

_REQUEST, _RESULT = "request.", "result."
_DTYPES = {dtype for dtype, _ in ITEM_DTYPES.values()} - {"bfloat16"}
_WORK_SIZE = 384
"""Rows and columns of the products of the fixed work: about a millisecond on one core."""


@dataclass(frozen=True)
class StoredExample:
    """A request, numbers as arrays of rank 0, and what it must give."""

    request: Mapping[str, NDArray[Any]]
    results: Mapping[str, NDArray[Any]]

    def fields(self) -> dict[str, Any]:
        """The request as a session takes it."""
        return {
            name: array.item() if name == "seed" else array for name, array in self.request.items()
        }


def dump_example(request: Mapping[str, Any], results: Mapping[str, Any]) -> bytes:
    """The file of an example; results that are no arrays, such as text, are left out."""
    named = {f"{_REQUEST}{name}": _array(item) for name, item in request.items()}
    named |= {
        f"{_RESULT}{name}": _array(item)
        for name, item in results.items()
        if isinstance(item, np.ndarray)
    }
    order = sorted(named, key=lambda name: (-named[name].itemsize, name))
    header = tensors_header([(n, str(named[n].dtype), named[n].shape) for n in order])
    return header + b"".join(named[name].tobytes() for name in order)


def _array(item: Any) -> NDArray[Any]:
    array = np.asarray(item)
    if array.dtype == np.uint64:
        array = array.astype(np.int64)
    if str(array.dtype) not in _DTYPES:
        raise ValueError(f"example: found an array of dtype {array.dtype}, expected numbers")
    return np.asarray(array, order="C")


def read_example(content: NDArray[np.uint8]) -> StoredExample:
    """The example of a file.

    Raises:
        CorruptBundle: it holds something else.
    """
    tensors = read_tensors(content, EXAMPLE_FILE)
    request: dict[str, NDArray[Any]] = {}
    results: dict[str, NDArray[Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_REQUEST):
            request[name.removeprefix(_REQUEST)] = tensor.array
        elif name.startswith(_RESULT):
            results[name.removeprefix(_RESULT)] = tensor.array
        else:
            raise CorruptBundle(
                f"{EXAMPLE_FILE}: found tensor {name!r}, expected request and result"
            )
    return StoredExample(request, results)


def stored_example(bundle: str | os.PathLike[str]) -> StoredExample | None:
    """The example of a bundle; None where it has none."""
    content = read_file(bundle, EXAMPLE_FILE)
    return None if content is None else read_example(content)


def read_report(bundle: str | os.PathLike[str]) -> dict[str, Any]:
    """The report of a bundle; empty where it has none that can be read."""
    content = read_file(bundle, "report.json")
    data = {} if content is None else strict_json(content.tobytes(), "report.json")
    return data if isinstance(data, dict) else {}


def example_limit(report: Mapping[str, Any], target: str) -> float:
    """The relative error that the example's results may have on a target.

    Twice what lowering the precision changed when the bundle was made, or the plain limit.
    """
    facts = (report.get("targets") or {}).get(target) or {}
    return max(EXAMPLE_LIMIT, 2 * float(facts.get("relative_error") or 0.0))


@dataclass(frozen=True)
class Speed:
    """A measured speed.

    Attributes:
        seconds: of one request, median.
        work_seconds: of the fixed work, median.
        ratio: median over rounds of the one divided by the other.
        interval: [low, high] of the ratio, 95 %, a bootstrap over rounds.
        machine: what it was measured on.
    """

    seconds: float
    work_seconds: float
    ratio: float
    interval: tuple[float, float]
    machine: str


def measure_speed(answer: Callable[[], object], repeats: int = 7) -> Speed:
    """Times a request in turns with the fixed work, after one round of warm-up.

    Args:
        repeats: rounds, at least 2.
    """
    seconds = interleaved_seconds({"request": answer, "work": fixed_work()}, repeats)
    ratios = np.asarray(seconds["request"]) / np.asarray(seconds["work"])
    found = bootstrap_interval(ratios, lambda chosen: float(np.median(chosen)), 2000, seed=0)
    return Speed(
        seconds=statistics.median(seconds["request"]),
        work_seconds=statistics.median(seconds["work"]),
        ratio=found.value,
        interval=(found.low, found.high),
        machine=fingerprint(),
    )


def fixed_work() -> Callable[[], object]:
    """A few milliseconds of matrix products, the same everywhere."""
    matrix = np.random.default_rng(0).standard_normal((_WORK_SIZE, _WORK_SIZE)).astype(np.float32)

    def work() -> None:
        for _ in range(8):
            np.matmul(matrix, matrix)

    return work


def measure_speedup(
    ours: Callable[[], object], baseline: Callable[[], object], seconds: float = 10.0
) -> dict[str, Any]:
    """How many times faster a request is answered than by a baseline, run in turns.

    Args:
        ours: answers a request.
        baseline: answers the same one.
        seconds: how long the measured rounds may take together; there are at most 7.
    Returns:
        {"value", "interval"}; where fewer than two rounds fit, the value is that of the round of
        warm-up, the interval None, and a "note" says so.
    """
    start = time.perf_counter()
    first = interleaved_seconds({"baseline": baseline, "ours": ours}, repeats=1, warmup=0)
    repeats = min(7, int(seconds / (time.perf_counter() - start)))
    if repeats < 2:
        value = first["baseline"][0] / first["ours"][0]
        note = f"no interval: one round takes more than half of the {seconds:g} s for all of them"
        return {"value": value, "interval": None, "note": note}
    times = interleaved_seconds({"baseline": baseline, "ours": ours}, repeats, warmup=0)
    speedup = compare(times["ours"], times["baseline"]).speedup
    return {"value": speedup.value, "interval": [speedup.low, speedup.high]}


def versions() -> dict[str, str]:
    """Python, and the libraries whose numbers a bundle's figures are."""
    found = {name: machine.version_of(name) for name in ("numpy", "onnx", "onnxruntime", "torch")}
    found["python"] = platform.python_version()
    return {name: version for name, version in sorted(found.items()) if version is not None}


def fingerprint() -> str:
    """Processor, cores and system: speeds of machines that differ in them are not comparable."""
    return f"{platform.machine()}, {processor()}, {os.cpu_count()} cores, {platform.system()}"


def processor() -> str:
    """The name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown processor"

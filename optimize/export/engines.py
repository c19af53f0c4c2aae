"""The native code of a bundle: its graphs as compiled packages or engines, target by target.

Each target has one function here that makes the files of `engines/<target>/` and says in an
`EngineEntry` what they are and what a machine must have to run them.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from optimize.export.tensorrt_network import Engine as TensorRtEngine
from optimize.export.tensorrt_network import Sizes
from optimize.export.to_onnx import graph_to_onnx, used_weights
from optimize.export.weights import Layout, layout_weights
from optimize.ir.errors import RecipeError
from optimize.ir.graph import hint
from optimize.ir.program import Program
from optimize.ir.torch_engine import DTYPE_NAMES
from optimize.runtime import machine
from optimize.runtime.machine import LIBRARIES
from optimize.runtime.manifest import (
    ENGINES_FOLDER,
    WEIGHTS_FILE,
    WEIGHTS_NAME,
    EngineEntry,
    EngineGraph,
    EngineTarget,
)

GROWTH = 4
"""How many times the traced size of a dimension an engine takes, where nothing else is said."""


@dataclass(frozen=True)
class EngineRequest:
    """One target to build.

    Attributes:
        target: of the manifest's `engines`.
        program: what to build, in the precision of the target.
        capabilities: compute capabilities of TensorRT-RTX's GPUs; None for its defaults.
        sizes: named size → sizes; without one it ranges from the least that the signature allows
            to four times the traced one.
    """

    target: EngineTarget
    program: Program
    capabilities: Sequence[str] | None = None
    sizes: Mapping[str, Sizes] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """What was built: the entry of the manifest, and the files it names."""

    entry: EngineEntry
    files: Mapping[str, bytes]
    layout: Layout | None
    """The weights file of its own, where the weights are not those of the bundle."""


def build(
    request: EngineRequest, shared: Layout, weights_path: Path, tell: Callable[[str], None]
) -> Engine:
    """Builds one target.

    Args:
        request: what to build.
        shared: the weights file of the bundle.
        weights_path: where that file lies now.
        tell: called with the name of each file before it is built.
    Raises:
        ResourceError: the library of the target is not installed.
        UnsupportedOpError, InputModelError: a graph cannot be built; says which op.
    """
    program = request.program
    names = [name for graph in program.graphs.values() for name in used_weights(graph)]
    own = None
    if not all(shared.holds(name, program.weights[name]) for name in names):
        own = layout_weights(program.weights, names)
    return _BUILDERS[request.target](request, shared, own, weights_path, tell)


def _file(target: str, role: str, suffix: str) -> str:
    return f"{ENGINES_FOLDER}/{target}/{role}.{suffix}"


def precision_of(program: Program) -> Any:
    """The float dtype that most weights of a program have; "float32" without weights."""
    counts: Counter[str] = Counter()
    for weight in program.weights.values():
        if weight.is_floating_point():
            counts[str(DTYPE_NAMES[weight.dtype])] += weight.numel()
    most = counts.most_common(1)[0][0] if counts else "float32"
    return most if most in ("bfloat16", "float16") else "float32"


def _aoti(
    request: EngineRequest,
    shared: Layout,
    own: Layout | None,
    weights_path: Path,
    tell: Callable[[str], None],
) -> Engine:
    from optimize.export.to_aoti import build_package

    program = request.program
    weights_file = WEIGHTS_FILE if own is None else f"{ENGINES_FOLDER}/aoti/{WEIGHTS_NAME}"
    places = (shared if own is None else own).places
    files: dict[str, bytes] = {}
    graphs: dict[str, EngineGraph] = {}
    for role, graph in sorted(program.graphs.items()):
        name = _file("aoti", role, "pt2")
        tell(name)
        package = build_package(graph, program.weights, role)
        files[name] = package.content
        graphs[role] = EngineGraph(
            file=name,
            inputs=package.inputs,
            outputs=package.outputs,
            weights={item: places[weight].name for item, weight in package.weights.items()},
        )
    device = next(iter(program.weights.values())).device.type if program.weights else "cpu"
    needs = {"platform": machine.platform_name()}
    if device == "cuda":
        needs["capabilities"] = str(machine.gpu_capability())
    else:
        needs["features"] = " ".join(sorted(machine.processor_features()))
    entry = EngineEntry(
        device="cuda" if device == "cuda" else "cpu",
        precision=precision_of(program),
        built_with={"torch": str(machine.version_of("torch"))},
        needs=needs,
        graphs=graphs,
        weights_file=weights_file,
    )
    return Engine(entry, files, own)


def _tensorrt_rtx(
    request: EngineRequest,
    shared: Layout,
    own: Layout | None,
    weights_path: Path,
    tell: Callable[[str], None],
) -> Engine:
    from optimize.export.to_tensorrt_rtx import CAPABILITIES, build_engine

    capabilities = tuple(request.capabilities or CAPABILITIES)

    def make(path: Path, sizes: Mapping[str, Sizes]) -> TensorRtEngine:
        return build_engine(path, capabilities=capabilities, sizes=sizes)

    return _engines(request, shared if own is None else own, own, weights_path, tell, make, ())


def _tensorrt(
    request: EngineRequest,
    shared: Layout,
    own: Layout | None,
    weights_path: Path,
    tell: Callable[[str], None],
) -> Engine:
    from optimize.export.tensorrt_plugins import plugins
    from optimize.export.to_tensorrt import build_engine

    def make(path: Path, sizes: Mapping[str, Sizes]) -> TensorRtEngine:
        return build_engine(path, sizes=sizes)

    layout = shared if own is None else own
    return _engines(request, layout, own, weights_path, tell, make, tuple(plugins()))


def _engines(
    request: EngineRequest,
    layout: Layout,
    own: Layout | None,
    weights_path: Path,
    tell: Callable[[str], None],
    make: Callable[[Path, Mapping[str, Sizes]], TensorRtEngine],
    plugins: Sequence[str],
) -> Engine:
    """Every graph as an engine, by way of ONNX."""
    program, target = request.program, request.target
    library = LIBRARIES[target]
    files: dict[str, bytes] = {}
    graphs: dict[str, EngineGraph] = {}
    ranges: dict[str, tuple[int, int]] = {}
    capabilities: tuple[str, ...] = ()
    with tempfile.TemporaryDirectory() as folder:
        _place_weights(Path(folder) / WEIGHTS_NAME, own, weights_path)
        for role, graph in sorted(program.graphs.items()):
            name = _file(target, role, "engine")
            tell(name)
            made = graph_to_onnx(graph, role, layout.places, standard=True, plugins=plugins)
            path = Path(folder) / f"{role}.onnx"
            path.write_bytes(made.model.SerializeToString(deterministic=True))
            sizes = sizes_of(program, graph.dimensions, role) | dict(request.sizes)
            engine = make(path, sizes)
            files[name], capabilities = engine.content, engine.capabilities
            for size, (least, _, most) in engine.sizes.items():
                ranges[size] = _narrowest(ranges.get(size), (least, most))
            graphs[role] = EngineGraph(
                file=name,
                inputs=tuple(made.inputs),
                outputs=tuple(made.outputs),
                tensors={
                    given: inside
                    for given, inside in (*made.inputs.items(), *made.outputs.items())
                    if given != inside
                },
            )
    entry = EngineEntry(
        device="cuda",
        precision=precision_of(program),
        built_with={library: str(machine.version_of(library))},
        needs={"platform": machine.platform_name(), "capabilities": " ".join(capabilities)},
        sizes={name: limits for name, limits in ranges.items() if name.isidentifier()},
        graphs=graphs,
        weights_file=None,
    )
    return Engine(entry, files, None)


def _place_weights(path: Path, own: Layout | None, shared: Path) -> None:
    """The weights file beside the ONNX file that points into it."""
    if own is None:
        os.symlink(shared.absolute(), path)
        return
    with path.open("wb") as file:
        for chunk in own.chunks():
            file.write(chunk)


def _narrowest(old: tuple[int, int] | None, new: tuple[int, int]) -> tuple[int, int]:
    return new if old is None else (max(old[0], new[0]), min(old[1], new[1]))


def sizes_of(program: Program, dimensions: Mapping[str, str], role: str) -> dict[str, Sizes]:
    """The sizes that an engine takes where nobody says which, for each size of a graph.

    From the least the signature allows to four times what the graph was traced with.
    """
    hints: dict[str, int] = {}
    for node in program.graphs[role].graph.nodes:
        if node.op != "placeholder" or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        for size in node.meta["val"].shape:
            if isinstance(size, torch.SymInt):
                hints[str(size.node.expr)] = hint(size)
    sizes: dict[str, Sizes] = {}
    for expression, traced in hints.items():
        name = expression
        for dimension, symbol in dimensions.items():
            name = name.replace(symbol, dimension)
        least, most = program.signature.dimensions.get(name, (1, GROWTH * traced))
        best = min(max(traced, least), most)
        sizes[name] = (max(1, least), best, max(best, min(most, GROWTH * traced)))
    return sizes


_BUILDERS: Mapping[str, Callable[..., Engine]] = {
    "aoti": _aoti,
    "tensorrt-rtx": _tensorrt_rtx,
    "tensorrt": _tensorrt,
}


def check_loop(engines: Sequence[EngineRequest], loop: str) -> None:
    """Refuses native code for a loop inside a graph, before any work is done for it.

    Raises:
        RecipeError: says what to export instead.
    """
    if loop == "onnx_loop" and engines:
        raise RecipeError(
            f'loop="onnx_loop": found target {engines[0].target}, expected onnx alone, whose '
            'graphs may hold a loop; export with loop="unrolled"'
        )

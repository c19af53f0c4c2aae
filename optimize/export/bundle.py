"""Program → bundle folder. The same program gives the same bytes."""

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from optimize.export.engines import EngineRequest, build, check_loop
from optimize.export.loop_forms import in_form, tables_of
from optimize.export.onnx_graphs import OnnxGraphs, onnx_graphs
from optimize.export.publish import Staging, absolute, check_target, staged
from optimize.export.weights import STORED_NAMES
from optimize.ir.errors import RecipeError
from optimize.ir.exporting import LoopForm
from optimize.ir.program import Program
from optimize.measure.cost import program_costs
from optimize.runtime.bundle import Bundle
from optimize.runtime.loop import Loop, features
from optimize.runtime.manifest import (
    ENGINES_FOLDER,
    FORMAT_MAJOR,
    FORMAT_MINOR,
    GRAPHS_FOLDER,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    TABLES_FILE,
    WEIGHTS_FILE,
    EngineEntry,
    EngineTarget,
    FileEntry,
    Generator,
    GraphEntry,
    Manifest,
    check_path,
    dump_manifest,
)
from optimize.runtime.onnx_engine import OnnxGraphs as runtime_graphs
from optimize.runtime.prompting import prompting_problems
from optimize.runtime.session import Session
from optimize.runtime.targets import Choice
from optimize.runtime.tensors import StoredTensor, tensors_header
from optimize.runtime.tokenizer_file import check_tokenizer_size

VERSION = "0.1.0"
REPORT_FILE = "report.json"


@dataclass(frozen=True)
class Written:
    """A bundle whose report is still to be written.

    Attributes:
        targets: target → what building it took.
        files: path → size and SHA-256 of what is written.
        graphs: role → path of its ONNX graph.
        costs: of one request, see `optimize.measure.cost.program_costs`.
        open_session: opens the ONNX graphs.
    """

    targets: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, FileEntry]
    graphs: Mapping[str, str]
    costs: Mapping[str, Any]
    open_session: Callable[[], Session]


ReportFiles = Callable[[Written], dict[str, bytes]]
"""What is written so far → path → content of more files."""


def export_bundle(
    program: Program,
    path: str | os.PathLike[str],
    *,
    loop: LoopForm = "step",
    unroll: int | None = None,
    overwrite: bool = False,
    extra_files: Mapping[str, bytes] | None = None,
    recipe: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
    engines: Sequence[EngineRequest] = (),
    int8: bool = False,
    report_files: ReportFiles | None = None,
) -> Path:
    """Writes a bundle for ONNX Runtime and, where asked, for engines of native code.

    Args:
        program: what to write.
        path: the folder to make; its parent must exist.
        loop, unroll: how steps become engine calls, see `Program.export`.
        overwrite: replace a folder that exists; it stays whole until the new one is.
        extra_files: path in the bundle → content, beside the program's assets: report, recipe.
        recipe: what the compiler was asked to do, JSON-able, kept in the manifest.
        progress: called with the path of each file before it is written.
        engines: native code to build beside the ONNX graphs, each target once.
        int8: quantise the matrix products of the ONNX graphs, see `optimize.export.int8`.
        report_files: makes further files once everything else is built.
    Returns:
        The absolute path of the bundle.
    Raises:
        ResourceError: the target exists or cannot be written; nothing is changed then.
        UnsupportedOpError: an op has no ONNX lowering; nothing is written then.
        RecipeError: an extra file has a path that the bundle cannot hold, or the tokenizer is
            missing.
    """
    target = absolute(path)
    check_target(target, overwrite)
    check_loop(engines, loop)
    _check_prompting(program)
    engines = [replace(item, program=in_form(item.program, loop, unroll)) for item in engines]
    program = in_form(program, loop, unroll)
    extra = _extra_files(program, extra_files or {})
    start = time.monotonic()
    onnx = onnx_graphs(program, loop, int8)
    fixed = (WEIGHTS_FILE, TABLES_FILE, MANIFEST_FILE, SIGNATURE_FILE)
    taken = [*onnx.files().values(), *fixed]
    _check_names(extra, taken)
    with staged(target, overwrite=overwrite) as staging:
        writer = _Writer(staging, progress or _silent)
        writer.write(WEIGHTS_FILE, onnx.layout.chunks())
        for role, name in onnx.files().items():
            content = onnx.graphs[role].model.SerializeToString(deterministic=True)
            writer.write(name, [content])
        writer.write(TABLES_FILE, _table_chunks(tables_of(onnx.loop, program.tables)))
        facts = {"onnx": writer.facts("onnx", start) | {"nodes": onnx.nodes()}}
        built: dict[EngineTarget, EngineEntry] = {}
        for request in engines:
            start = time.monotonic()
            engine = build(request, onnx.layout, staging.path(WEIGHTS_FILE), writer.tell)
            built[request.target] = engine.entry
            for name, content in engine.files.items():
                writer.write(name, [content])
            if engine.layout is not None:
                writer.write(str(engine.entry.weights_file), engine.layout.chunks())
            facts[request.target] = writer.facts(request.target, start)
        if report_files is not None:
            partial = _manifest(
                program,
                onnx.loop,
                onnx.entries(),
                writer.files | {n: _NO_FILE for n in extra},
                recipe,
                {},
                built,
            )
            written = Written(
                targets=facts,
                files=dict(writer.files),
                graphs=onnx.files(),
                costs=program_costs(program, onnx.loop),
                open_session=lambda: _session(program, onnx, partial),
            )
            made = report_files(written)
            _check_names(made, [*taken, *extra])
            extra |= made
        for name, content in sorted(extra.items()):
            writer.write(name, [content])
        manifest = _manifest(program, onnx.loop, onnx.entries(), writer.files, recipe, extra, built)
        _publish(staging, manifest)
    return target


_NO_FILE = FileEntry(size=0, sha256="0" * 64)


def _session(program: Program, onnx: OnnxGraphs, manifest: Manifest) -> Session:
    """A session of graphs that are not published yet."""
    layout = onnx.layout
    stored = {}
    for name, tensor in zip(layout.names, layout.tensors, strict=True):
        flat = tensor.detach().cpu().contiguous()
        dtype = STORED_NAMES[flat.dtype]
        array = flat.view(torch.uint16).numpy() if dtype == "bfloat16" else flat.numpy()
        stored[name] = StoredTensor(dtype, array, layout.places[name].offset)
    models = {
        role: graph.model.SerializeToString(deterministic=True)
        for role, graph in onnx.graphs.items()
    }
    prompting = program.prompting
    bundle = Bundle(
        manifest=manifest,
        models=models,
        weights=stored,
        tables=tables_of(onnx.loop, program.tables),
        choice=Choice("onnx", "the bundle is being written"),
        engine_files={},
        tokenizer=b"" if prompting is None else program.assets[prompting.tokenizer],
        unlisted=(),
    )
    return Session(bundle, runtime_graphs(models, manifest.graphs, stored))


class _Writer:
    """Writes files into a staging folder and keeps their sizes and hashes."""

    def __init__(self, staging: Staging, tell: Callable[[str], None]) -> None:
        self._staging = staging
        self.tell = tell
        self.files: dict[str, FileEntry] = {}

    def write(self, name: str, chunks: Any) -> None:
        self.tell(name)
        self.files[name] = self._staging.write(name, chunks)

    def facts(self, target: str, start: float) -> dict[str, Any]:
        """Bytes of a target's files, and the seconds since `start`."""
        folder = GRAPHS_FOLDER if target == "onnx" else f"{ENGINES_FOLDER}/{target}"
        sizes = [entry.size for name, entry in self.files.items() if name.startswith(f"{folder}/")]
        return {"bytes": sum(sizes), "seconds": round(time.monotonic() - start, 3)}


def _silent(name: str) -> None:
    """Tells nobody."""


def _publish(staging: Staging, manifest: Manifest) -> None:
    """The manifest is written last: a folder without one is an unfinished export."""
    staging.write(MANIFEST_FILE, [dump_manifest(manifest)])
    staging.publish()


def _manifest(
    program: Program,
    loop: Loop,
    graphs: Mapping[str, GraphEntry],
    files: Mapping[str, FileEntry],
    recipe: Mapping[str, Any] | None,
    extra: Mapping[str, bytes],
    engines: Mapping[EngineTarget, EngineEntry],
) -> Manifest:
    report = extra.get(REPORT_FILE)
    return Manifest(
        format="optimize-bundle",
        format_version=f"{FORMAT_MAJOR}.{FORMAT_MINOR}",
        generator=Generator(name="optimize", version=VERSION),
        required_features=features(loop, program.signature),
        signature=program.signature,
        loop=loop,
        graphs=dict(graphs),
        targets=("onnx", *engines),
        engines=dict(engines),
        files=dict(files),
        recipe=None if recipe is None else dict(recipe),
        report_sha256=None if report is None else hashlib.sha256(report).hexdigest(),
        prompting=program.prompting,
    )


def _check_prompting(program: Program) -> None:
    """Refuses what no reader would load, before any work is done for it."""
    if program.prompting is None:
        return
    for problem in prompting_problems(program.prompting, program.signature, program.assets):
        raise RecipeError(f"{problem}; capture the model again")
    name = program.prompting.tokenizer
    check_tokenizer_size(name, len(program.assets[name]))


def _extra_files(program: Program, given: Mapping[str, bytes]) -> dict[str, bytes]:
    twice = sorted(set(program.assets) & set(given))
    if twice:
        raise RecipeError(
            f"extra file {twice[0]!r}: found an asset of the program there, expected another name"
        )
    return dict(sorted({**program.assets, **given}.items()))


def _check_names(extra: Mapping[str, bytes], taken: list[str]) -> None:
    folded = {name.casefold(): name for name in taken}
    for name in extra:
        try:
            check_path(name)
        except Exception as error:
            raise RecipeError(f"extra file: {error}") from error
        other = folded.setdefault(name.casefold(), name)
        if other != name or name in taken:
            raise RecipeError(
                f"extra file {name!r}: found {other!r} in the bundle already, expected another name"
            )


def _table_chunks(tables: Mapping[str, NDArray[Any]]) -> list[bytes | memoryview]:
    arrays = {name: np.ascontiguousarray(tables[name]) for name in sorted(tables)}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header = tensors_header([(n, str(arrays[n].dtype), arrays[n].shape) for n in order])
    return [header, *(arrays[name].tobytes() for name in order)]

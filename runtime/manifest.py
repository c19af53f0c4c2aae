"""The manifest of a bundle: what is in it, and the hash of every file.

On disk it is the manifest of an ONNX Runtime model package, so that any ONNX Runtime that reads
packages opens the graphs; what only this runtime needs lies where packages allow anything:

    {"schema_version": "1.0",
     "components": {"step": {"variants": {"onnx": {"variant_directory": "graphs",
                    "executor_info": {"ort": {"model_file": "step.onnx"}}, …}}}},
     "additional_metadata": {"optimize": {"loop": …, "signature": …, "files": …}}}
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from optimize.runtime.errors import CorruptBundle, UnsafeBundle, VersionError
from optimize.runtime.loop import (
    RAGGED_RESULTS,
    STEP_RANGES,
    TEXT_FIELDS,
    UNIFORM_NOISE,
    Data,
    Identifier,
    Loop,
    Signature,
    calls,
    features,
    repeats,
)
from optimize.runtime.prompting import Prompting, prompting_problems
from optimize.runtime.tensors import strict_json

FORMAT_MAJOR, FORMAT_MINOR = 1, 5
FEATURES = frozenset({STEP_RANGES, RAGGED_RESULTS, UNIFORM_NOISE, TEXT_FIELDS})
"""The values of `required_features` that this version has."""

FORMAT = "optimize-bundle"
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"
PACKAGE_VERSION = "1.0"
PACKAGE_SLOT = "optimize"
GRAPHS_FOLDER = "graphs"
WEIGHTS_NAME = "weights.safetensors"
WEIGHTS_FILE = f"{GRAPHS_FOLDER}/{WEIGHTS_NAME}"
TABLES_FILE = "tables.safetensors"
ENGINES_FOLDER = "engines"

MAX_MANIFEST_BYTES = 4 * 2**20
MAX_PATH = 240

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileEntry(Data):
    """Size in bytes and SHA-256 of a file."""

    size: int = Field(ge=0, lt=2**63)
    sha256: Digest


class GraphEntry(Data):
    """A graph's file, and what its inputs and outputs are called in there.

    `few_rows`: its products of weights have so few rows for one sample, as those of decoding a
    token, that weights repacked for them pay.
    """

    file: str
    inputs: dict[Identifier, str]
    outputs: dict[Identifier, str]
    few_rows: bool = False


EngineTarget = Literal["aoti", "tensorrt-rtx", "tensorrt"]
"""Targets whose files are native code."""


class EngineGraph(Data):
    """One graph as native code: its file, and its inputs and outputs in the order it takes them.

    `tensors`: input or output → what the code calls it, where that is another name.
    `weights`: name the code knows a weight by → its name in the weights file of the engine.
    """

    file: str
    inputs: tuple[Identifier, ...]
    outputs: tuple[Identifier, ...]
    tensors: dict[Identifier, str] = Field(default_factory=dict)
    weights: dict[str, str] = Field(default_factory=dict)


class EngineEntry(Data):
    """The graphs of the loop as native code for one target.

    Attributes:
        device: where it runs.
        precision: the dtype it computes matrix products in.
        built_with: name of a library, such as "torch" → its version.
        needs: what the machine must have: "platform" such as "linux-x86_64", "features" of the
            processor, "capabilities" of the GPU such as "SM89 SM120"; compared with what is found
            there before anything is loaded.
        sizes: named size → the least and the greatest the code was built for.
        graphs: role → file.
        weights_file: the file its weights lie in; None where the code has its own.
    """

    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "bfloat16", "float16"]
    built_with: dict[str, str]
    needs: dict[str, str]
    sizes: dict[Identifier, tuple[int, int]] = Field(default_factory=dict)
    graphs: dict[Identifier, EngineGraph]
    weights_file: str | None = None


class Generator(Data):
    """What wrote the bundle."""

    name: str = Field(max_length=200)
    version: str = Field(max_length=200)


class Manifest(Data):
    """The contents of manifest.json.

    Attributes:
        format_version: "major.minor"; a newer minor only adds fields that old readers may ignore.
        required_features: names of capabilities without which the bundle must not be run.
        graphs: role → its ONNX file.
        targets: what the bundle has files for: "onnx" and the keys of `engines`.
        engines: target → native code, which runs only where it is trusted.
        files: path → size and hash, of every file but the manifest itself.
        recipe: what the compiler was asked to do, as it was given.
        report_sha256: digest of report.json, None without one.
        prompting: how text and pictures become requests, None where they do not.
    """

    format: Literal["optimize-bundle"]
    format_version: Annotated[str, Field(pattern=r"^\d{1,6}\.\d{1,6}$")]
    generator: Generator
    required_features: tuple[str, ...] = ()
    signature: Signature
    loop: Loop
    graphs: dict[Identifier, GraphEntry]
    targets: tuple[str, ...]
    engines: dict[EngineTarget, EngineEntry] = Field(default_factory=dict)
    files: dict[str, FileEntry]
    recipe: JsonValue = None
    report_sha256: Digest | None = None
    prompting: Prompting | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        for path in (*(graph.file for graph in self.graphs.values()), WEIGHTS_FILE, TABLES_FILE):
            if path not in self.files:
                raise ValueError(f"`files` lacks {path}")
        slots = {slot.name for slot in self.loop.slots}
        noise = {item.name for item in self.loop.noise}
        fields = {item.name for item in self.signature.inputs}
        known = {"state": slots, "noise": noise, "request": fields}
        for call in calls(self.loop.body):
            if call.graph not in self.graphs:
                raise ValueError(f"the loop calls graph {call.graph}, which `graphs` lacks")
            graph = self.graphs[call.graph]
            if set(call.inputs) != set(graph.inputs) or not set(call.outputs) <= set(graph.outputs):
                raise ValueError(f"the loop calls graph {call.graph} with other names than it has")
            for binding in call.inputs.values():
                if binding.source != "table" and binding.name not in known[binding.source]:
                    raise ValueError(f"the loop reads unknown {binding.source} {binding.name}")
            for destination in call.outputs.values():
                if destination.state is not None and destination.state not in slots:
                    raise ValueError(f"the loop writes unknown slot {destination.state}")
        if unknown := sorted(set(self.loop.results.values()) - slots):
            raise ValueError(f"the loop returns unknown slots {unknown}")
        needed = set(features(self.loop, self.signature)) - set(self.required_features)
        if needed:
            raise ValueError(f"`required_features` lacks {sorted(needed)}, which the loop needs")
        for item in repeats(self.loop.body):
            if item.until is not None and item.until not in slots:
                raise ValueError(f"the loop waits for unknown slot {item.until}")
        for problem in _engine_problems(self):
            raise ValueError(problem)
        if self.prompting is not None:
            for problem in prompting_problems(self.prompting, self.signature, self.files):
                raise ValueError(problem)
        return self


def _engine_problems(manifest: Manifest) -> Iterator[str]:
    """What does not fit between the engines and the rest of a manifest."""
    called = {call.graph: call for call in calls(manifest.loop.body)}
    named = {graph.file for item in manifest.engines.values() for graph in item.graphs.values()}
    named |= {str(item.weights_file) for item in manifest.engines.values()}
    for path in manifest.files:
        if path.startswith(f"{ENGINES_FOLDER}/") and path not in named:
            yield f"{path} is native code that no engine of `engines` names"
    for target, engine in manifest.engines.items():
        if target not in manifest.targets:
            yield f"`engines` has {target}, which `targets` lacks"
        if set(engine.graphs) != set(called):
            yield f"engine {target} has graphs {sorted(engine.graphs)}, not those of the loop"
        if engine.weights_file is not None and engine.weights_file not in manifest.files:
            yield f"`files` lacks {engine.weights_file}"
        for role, graph in engine.graphs.items():
            if not graph.file.startswith(f"{ENGINES_FOLDER}/") or graph.file not in manifest.files:
                yield f"engine {target} names {graph.file}, which is no file of {ENGINES_FOLDER}/"
            call = called[role]
            if set(call.inputs) != set(graph.inputs) or not set(call.outputs) <= {*graph.outputs}:
                yield f"the loop calls graph {role} of engine {target} with other names than it has"


def dump_manifest(manifest: Manifest) -> bytes:
    """The bytes of manifest.json: sorted keys, so equal manifests are equal bytes."""
    data = {
        "schema_version": PACKAGE_VERSION,
        "components": _components(manifest),
        "additional_metadata": {PACKAGE_SLOT: manifest.model_dump(mode="json")},
    }
    return (json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _components(manifest: Manifest) -> dict[str, Any]:
    """Every graph as a component of a model package."""
    components: dict[str, Any] = {}
    for role, graph in manifest.graphs.items():
        folder, _, name = graph.file.rpartition("/")
        variant = {
            "variant_directory": folder,
            "ep": "CPUExecutionProvider",
            "device": "cpu",
            "executor_info": {"ort": {"model_file": name}},
        }
        components[role] = {"variants": {"onnx": variant}}
    return components


def parse_manifest(raw: bytes) -> Manifest:
    """Reads a manifest; fields that a newer minor version added are ignored.

    Raises:
        CorruptBundle: not strict JSON, or not what a manifest holds.
        VersionError: another format, another major version, or a missing capability.
        UnsafeBundle: a path that must not be opened.
    """
    package = strict_json(raw, MANIFEST_FILE)
    extra = package.get("additional_metadata") if isinstance(package, dict) else None
    data = extra.get(PACKAGE_SLOT) if isinstance(extra, dict) else None
    newer = _check_version(data)
    manifest = _validated(data, newer)
    if not newer and _without_ours(package) != _without_ours(json.loads(dump_manifest(manifest))):
        raise CorruptBundle(
            f"{MANIFEST_FILE}: found components that are not this bundle's graphs; export it again"
        )
    missing = sorted(set(manifest.required_features) - FEATURES)
    if missing:
        raise VersionError(
            f"{MANIFEST_FILE}: needs {', '.join(missing)}, which this version "
            "does not have; install a newer version"
        )
    for path in manifest.files:
        check_path(path)
        if path.casefold() in (MANIFEST_FILE, SIGNATURE_FILE):
            raise UnsafeBundle(f"{MANIFEST_FILE}: found {path!r} among `files`, expected others")
    folded: dict[str, str] = {}
    for path in manifest.files:
        other = folded.setdefault(path.casefold(), path)
        if other != path:
            raise UnsafeBundle(f"{MANIFEST_FILE}: {other!r} and {path!r} differ in case only")
    return manifest


def _without_ours(package: Any) -> Any:
    """What plain ONNX Runtime reads; our part may lack what a minor version added."""
    extra = {**package["additional_metadata"], PACKAGE_SLOT: None}
    return {**package, "additional_metadata": extra}


def _check_version(data: Any) -> bool:
    """Whether the manifest is of a newer minor version."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CorruptBundle(f"{MANIFEST_FILE}: found no field format={FORMAT!r}; not a bundle")
    version = data.get("format_version")
    if not isinstance(version, str) or not re.fullmatch(r"\d{1,6}\.\d{1,6}", version):
        raise CorruptBundle(f"{MANIFEST_FILE}: found format_version {str(version)[:50]!r}")
    major, minor = map(int, version.split("."))
    if major != FORMAT_MAJOR:
        raise VersionError(
            f"{MANIFEST_FILE}: found format version {version}, expected {FORMAT_MAJOR}.x; "
            + ("install a newer version" if major > FORMAT_MAJOR else "export the bundle again")
        )
    return minor > FORMAT_MINOR


def _validated(data: Any, newer: bool) -> Manifest:
    try:
        return Manifest.model_validate_json(json.dumps(data))
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        unknown = [item["loc"] for item in details if item["type"] == "extra_forbidden"]
        if newer and unknown:
            for location in unknown:
                _remove(data, location)
            return _validated(data, newer)
        shown = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}"
            for item in details[:3]
        )
        raise CorruptBundle(f"{MANIFEST_FILE}: {shown}; export the bundle again") from error
    except RecursionError as error:
        raise CorruptBundle(f"{MANIFEST_FILE}: found a loop nested too deeply") from error


def _remove(data: Any, location: tuple[int | str, ...]) -> None:
    """Removes an unknown field; parts of the location that name a type of a union are skipped."""
    for part in location[:-1]:
        if isinstance(part, int) or (isinstance(data, dict) and part in data):
            data = data[part]
    if isinstance(data, dict):
        data.pop(location[-1], None)


def check_path(path: str) -> None:
    """Refuses a path that could leave the bundle or mean different files on different systems.

    Raises:
        UnsafeBundle: names the path.
    """
    parts = path.split("/")
    bad = (
        not path
        or len(path.encode(errors="surrogatepass")) > MAX_PATH
        or any(part in ("", ".", "..") or part[0] == "~" or part[-1] in " ." for part in parts)
        or any(
            ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 or c in '\\:*?"<>|'
            for c in path
        )
        or unicodedata.normalize("NFC", path) != path
    )
    if bad:
        raise UnsafeBundle(
            f"found path {path[:100]!r}, expected a plain path inside the bundle, at most "
            f"{MAX_PATH} bytes"
        )

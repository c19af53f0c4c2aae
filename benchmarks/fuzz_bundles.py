"""Damaged bundles: what reading them does to the process that reads.

    manifests    bytes and JSON structure, through `parse_manifest`
    tensors      bytes and JSON structure of safetensors headers, through `read_tensors`
    files        every file of a bundle cut or flipped, through `open_bundle`: hashes do not match
    graphs       protobuf fields and bytes of the graphs, hashes made to match, through `load` and
                 one request
    operators    the same for graphs of one operator with constant inputs, which ONNX Runtime
                 computes while it loads them; see fuzz_operators.py

Inputs are read in child processes with a limit on their address space. An input fails if the child
dies by a signal, raises what is not an `OptimizeError`, takes more than five seconds, or grows by
more than 512 MiB. Failures are written as files; input `index` of a kind is made again by
`--only KIND INDEX`.

python benchmarks/fuzz_bundles.py --out build/bench/fuzz_bundles.json
"""

import argparse
import contextlib
import faulthandler
import hashlib
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzz_corpus import finish, small_bundle
from fuzz_mutations import damaged_bytes, damaged_graph, damaged_json
from fuzz_operators import feed_operator, make_operator, operator_models

from optimize.runtime.bundle import open_bundle
from optimize.runtime.errors import IntegrityError, OptimizeError
from optimize.runtime.manifest import MANIFEST_FILE, PACKAGE_SLOT, parse_manifest
from optimize.runtime.session import load
from optimize.runtime.tensors import read_tensors

HANG_SECONDS = 5.0
GROWTH_BYTES = 512 * 2**20
ADDRESS_SPACE = 2 * 2**30
"""What a child may map beyond what it has when it starts."""

COUNTS: Mapping[str, int] = {
    "manifests": 20_000,
    "tensors": 20_000,
    "files": 4_000,
    "graphs": 1_000,
    "operators": 30_000,
}

REQUEST: Mapping[str, Any] = {
    "encoder_hidden_states": np.zeros((1, 7, 12), np.float32),
    "pooled_projections": np.zeros((1, 10), np.float32),
    "seed": 0,
}
"""What the session of `fuzz_corpus.small_bundle` is asked."""


class Surprise(Exception):
    """An input that should have been refused was not."""


@dataclass(frozen=True)
class Kind:
    """One way of reading, and how its inputs are made.

    Attributes:
        make: index → (content, what it is), always the same for an index.
        feed: reads the content; raises `OptimizeError` to refuse it.
        restore: undoes what a killed child left behind.
    suffix: of the name of a failure's file.
    """

    make: Callable[[int], tuple[bytes, str]]
    feed: Callable[[bytes, str], None]
    restore: Callable[[], None]
    suffix: str


@dataclass
class Result:
    """Counts of one kind; `failures` has at most twenty, `failed` all of them."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    crashes: int = 0
    untyped: int = 0
    hangs: int = 0
    growths: int = 0
    peak_growth_mib: float = 0.0
    slowest_seconds: float = 0.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Inputs that did harm."""
        return self.crashes + self.untyped + self.hangs + self.growths


def run_kind(name: str, kind: Kind, count: int, out: Path, start: int = 0) -> Result:
    """Feeds inputs [start, start + count), in as many children as it takes."""
    result = Result()
    begun = time.perf_counter()
    index = start
    while index < start + count:
        index = _run_child(name, kind, index, start + count, result, out)
    result.seconds = time.perf_counter() - begun
    return result


def _run_child(name: str, kind: Kind, index: int, end: int, result: Result, out: Path) -> int:
    """Runs one child until it ends or fails; returns the index that comes next."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(kind, index, end, writing)
    os.close(writing)
    problem = ""
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while index < end:
            ready, _, _ = select.select([pipe], [], [], HANG_SECONDS)
            line = pipe.readline() if ready else b""
            if not line:
                problem = "crash" if ready else "hang"
                break
            _count(result, json.loads(line), name, kind, index, out)
            index += 1
    if problem == "hang":
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if problem == "hang":
        result.hangs += 1
    elif problem:
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        problem = f"crash by signal {ended}" if ended else f"crash, exit {os.WEXITSTATUS(status)}"
        result.crashes += 1
    if problem:
        kind.restore()
        result.inputs += 1
        _save(result, name, kind, index, problem, out)
        index += 1
    return index


def _count(
    result: Result, said: Mapping[str, Any], name: str, kind: Kind, index: int, out: Path
) -> None:
    result.inputs += 1
    result.slowest_seconds = max(result.slowest_seconds, said["seconds"])
    result.peak_growth_mib = max(result.peak_growth_mib, said["growth"] / 2**20)
    result.accepted += said["outcome"] == "accepted"
    result.refused += said["outcome"] == "refused"
    if said["outcome"] not in ("accepted", "refused"):
        result.untyped += 1
        _save(result, name, kind, index, said["outcome"], out)
    elif said["growth"] > GROWTH_BYTES:
        result.growths += 1
        _save(result, name, kind, index, f"grew by {said['growth']} bytes", out)


def _save(result: Result, name: str, kind: Kind, index: int, problem: str, out: Path) -> None:
    content, about = kind.make(index)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}-{index}{kind.suffix}"
    path.write_bytes(content)
    if len(result.failures) < 20:
        result.failures.append(f"{path.name} ({about}): {problem}")


def _child(kind: Kind, index: int, end: int, pipe: int) -> None:
    """Feeds inputs and says one line about each; ends the process."""
    try:
        limit = _mapped_bytes() + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        warnings.simplefilter("ignore")
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        for number in range(index, end):
            content, about = kind.make(number)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            begun = time.perf_counter()
            outcome = _outcome(kind, content, about)
            said = {
                "outcome": outcome,
                "seconds": time.perf_counter() - begun,
                "growth": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
            }
            os.write(pipe, json.dumps(said).encode() + b"\n")
    finally:
        os._exit(0)


def _outcome(kind: Kind, content: bytes, about: str) -> str:
    try:
        kind.feed(content, about)
    except OptimizeError:
        return "refused"
    except BaseException:
        return traceback.format_exc(limit=-2)[-600:]
    return "accepted"


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def kinds_of(bundle: Path, request: Mapping[str, Any], work: Path, seed: int) -> dict[str, Kind]:
    """The kinds for one bundle.

    Args:
        bundle: left alone.
        request: what its session is asked after a damaged graph was accepted.
        work: an empty folder for damaged copies.
        seed: chooses the inputs.
    """
    files = {
        str(file.relative_to(bundle)): file.read_bytes()
        for file in sorted(bundle.rglob("*"))
        if file.is_file()
    }
    manifest = files[MANIFEST_FILE]
    document = json.loads(manifest)
    tensors = [files[name] for name in files if name.endswith(".safetensors")]
    graphs = [name for name in files if name.endswith(".onnx")]
    others = [name for name in files if name != MANIFEST_FILE]

    def random(kind: str, index: int) -> Random:
        return Random(f"{seed}:{kind}:{index}")

    def make_manifest(index: int) -> tuple[bytes, str]:
        chance = random("manifests", index)
        if chance.random() < 0.3:
            return damaged_bytes(manifest, chance), "bytes"
        if chance.random() < 0.2:
            return damaged_json(document, chance), "package"
        ours = damaged_json(document["additional_metadata"][PACKAGE_SLOT], chance)
        outer = {**document, "additional_metadata": {PACKAGE_SLOT: "OURS"}}
        return json.dumps(outer).encode().replace(b'"OURS"', ours), "manifest"

    def make_tensors(index: int) -> tuple[bytes, str]:
        chance = random("tensors", index)
        whole = chance.choice(tensors)
        length = int.from_bytes(whole[:8], "little")
        header, data = whole[8 : 8 + length], whole[8 + length :][:4096]
        if chance.random() < 0.3:
            return damaged_bytes(whole[: 8 + length], chance) + data, "bytes"
        header = damaged_json(json.loads(header), chance)
        return len(header).to_bytes(8, "little") + header + data, "header"

    def make_file(index: int) -> tuple[bytes, str]:
        chance = random("files", index)
        name = others[index % len(others)]
        content = damaged_bytes(files[name], chance)
        # Two changes may undo each other.
        return (content if content != files[name] else content[:-1]), name

    def make_graph(index: int) -> tuple[bytes, str]:
        chance = random("graphs", index)
        name = graphs[index % len(graphs)]
        return damaged_graph(files[name], chance), name

    def feed_file(content: bytes, name: str) -> None:
        with _replaced(work, files, name, content):
            try:
                open_bundle(work)
            except IntegrityError:
                raise
            raise Surprise(f"{name}: damage was not noticed")

    def feed_graph(content: bytes, name: str) -> None:
        entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        package = json.loads(manifest)
        package["additional_metadata"][PACKAGE_SLOT]["files"][name] = entry
        with (
            _replaced(work, files, name, content),
            _replaced(work, files, MANIFEST_FILE, json.dumps(package).encode()),
            load(work, threads=1) as session,
        ):
            session(**request)

    def restore() -> None:
        for name, content in files.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes(content)

    restore()
    return {
        "manifests": Kind(make_manifest, lambda raw, _: _parse(raw), restore, ".json"),
        "tensors": Kind(make_tensors, lambda raw, _: _read(raw), restore, ".safetensors"),
        "files": Kind(make_file, feed_file, restore, ".bin"),
        "graphs": Kind(make_graph, feed_graph, restore, ".onnx"),
    }


def operators_kind(seed: int) -> Kind:
    """Graphs of single operators, of which many are none that a bundle holds."""
    models = operator_models()
    return Kind(
        make=lambda index: make_operator(models, index, Random(f"{seed}:operators:{index}")),
        feed=lambda raw, _: feed_operator(raw),
        restore=lambda: None,
        suffix=".onnx",
    )


def _parse(raw: bytes) -> None:
    parse_manifest(raw)


def _read(raw: bytes) -> None:
    read_tensors(np.frombuffer(raw, np.uint8), "x.safetensors")


@contextlib.contextmanager
def _replaced(work: Path, files: Mapping[str, bytes], name: str, content: bytes) -> Any:
    (work / name).write_bytes(content)
    try:
        yield
    finally:
        (work / name).write_bytes(files[name])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench/fuzz_bundles.json"))
    parser.add_argument("--seed", type=int, default=0, help="chooses the inputs")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many inputs")
    parser.add_argument("--only", nargs=2, metavar=("KIND", "INDEX"), help="read one input again")
    given = parser.parse_args()
    found = given.out.with_suffix("")
    with tempfile.TemporaryDirectory() as folder:
        bundle = _in_child(small_bundle, Path(folder) / "small")
        (Path(folder) / "work").mkdir()
        kinds = kinds_of(bundle, REQUEST, Path(folder) / "work", given.seed)
        kinds["operators"] = operators_kind(given.seed)
        if given.only:
            name, index = given.only[0], int(given.only[1])
            kinds[name].feed(*kinds[name].make(index))
            return
        figures = {}
        failed = 0
        for name, kind in kinds.items():
            print(f"{name} …", file=sys.stderr, flush=True)
            result = run_kind(name, kind, int(COUNTS[name] * given.scale), found)
            figures[name] = asdict(result)
            failed += result.failed
    sys.exit(finish(given.out, {"seed": given.seed, **figures}, failed))


def _in_child(make: Callable[[Path], Path], path: Path) -> Path:
    """Calls a function in a process of its own, so that what it imports is not in this one."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            make(path)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError("the bundle could not be exported")
    return path


if __name__ == "__main__":
    main()

"""What is left of a bundle when the system fails its writer, at every system call of an export.

The files of a bundle are published again by a child process whose n-th call of one kind is made to
fail, or to be its last, by `strace`; n goes from 1 until the child no longer gets there. A child is
forked with everything imported and then traced, so that only the calls of the export count.

After each: the folder is the old bundle or the new one, whole; an export that failed said so with a
ResourceError; what it left behind is gone after the next export.

python benchmarks/crash_points.py --out build/bench/crash_points.json
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fuzz_corpus import finish, small_bundle

from optimize.export.publish import staged
from optimize.runtime.bundle import STAGING_SUFFIX, open_bundle
from optimize.runtime.errors import OptimizeError, ResourceError
from optimize.runtime.manifest import MANIFEST_FILE, dump_manifest, parse_manifest

CALLS = (
    "mkdir", "openat", "flock", "write", "fsync", "close", "renameat2", "getdents64", "unlinkat",
    "rmdir", "newfstatat", "access",
)  # fmt: skip
FAILURES = ("SIGKILL", "ENOSPC", "EIO", "EACCES")
HANG_SECONDS = 5.0
AGE_SECONDS = 3600.0
PUBLISHED, REFUSED, UNTYPED = 0, 3, 4

Files = Mapping[str, bytes]


@dataclass
class Result:
    """Counts; a point is one call of one kind with one failure.

    Attributes:
        points: tried.
        published: of these, those after which the new bundle was there.
        half: folders that are neither the old nor the new bundle.
        lost: old bundles that were gone, with no new one.
        untyped: exports that failed with another error than `ResourceError`, or said nothing.
        left: points whose remains the next export did not remove.
        problems: the first twenty of these.
    """

    points: int = 0
    published: int = 0
    half: int = 0
    lost: int = 0
    untyped: int = 0
    hangs: int = 0
    left: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Points that did harm."""
        return self.half + self.lost + self.untyped + self.hangs + self.left

    def note(self, kind: str, where: str) -> None:
        """Counts one problem."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.problems) < 20:
            self.problems.append(f"{where}: {kind}")


def files_of(bundle: Path) -> dict[str, bytes]:
    """Path → content of a bundle's files, the manifest last as an export writes it."""
    manifest = (bundle / MANIFEST_FILE).read_bytes()
    names = sorted(parse_manifest(manifest).files)
    return {name: (bundle / name).read_bytes() for name in names} | {MANIFEST_FILE: manifest}


def other_version(files: Files) -> dict[str, bytes]:
    """The same bundle by another generator, so that its manifest is another."""
    manifest = parse_manifest(files[MANIFEST_FILE])
    generator = manifest.generator.model_copy(update={"version": "other"})
    changed = manifest.model_copy(update={"generator": generator})
    return {**files, MANIFEST_FILE: dump_manifest(changed)}


def publish(files: Files, target: Path, overwrite: bool) -> None:
    """Writes a bundle as an export does."""
    with staged(target, overwrite=overwrite) as staging:
        for name, content in files.items():
            half = len(content) // 2
            staging.write(name, [content[:half], content[half:]])
        staging.publish()


@dataclass(frozen=True)
class Point:
    """The `number`-th call of a kind in an export, and what happens there."""

    overwrite: bool
    call: str
    failure: str
    number: int

    def __str__(self) -> str:
        way = "overwrite" if self.overwrite else "fresh"
        return f"{self.failure} at {self.call} {self.number} ({way})"


def sweep(bundle: Path, folder: Path, every: int = 1, first: int = 0) -> Result:
    """Tries every point, or each `every`-th from `first` on.

    Args:
        bundle: whose files are published; left alone.
        folder: empty, on the file system to try.
    Raises:
        OSError: strace is missing, or may not trace a child here.
    """
    new = files_of(bundle)
    old = other_version(new)
    publish(new, folder / "bundle", overwrite=False)
    publish(old, folder / "bundle", overwrite=True)
    result = Result()
    begun = time.perf_counter()
    for point in [*_points(folder, old, new)][first::every]:
        _try(folder, old, new, point, result)
    result.seconds = time.perf_counter() - begun
    return result


def _points(folder: Path, old: Files, new: Files) -> Iterator[Point]:
    """Every call of an export that nothing disturbs, with every failure."""
    for overwrite in (False, True):
        _prepare(folder, old if overwrite else None)
        code, trace = _traced(folder, new, overwrite, [f"--trace={','.join(CALLS)}"])
        if code != PUBLISHED:
            raise OSError(f"strace: found exit {code} of an export left alone, expected success")
        for call in CALLS:
            for number in range(1, sum(f"{call}(" in line for line in trace.splitlines()) + 1):
                for failure in FAILURES:
                    yield Point(overwrite, call, failure, number)


def _try(folder: Path, old: Files, new: Files, point: Point, result: Result) -> None:
    _prepare(folder, old if point.overwrite else None)
    kind = "signal" if point.failure.startswith("SIG") else "error"
    inject = f"--inject={point.call}:{kind}={point.failure}:when={point.number}"
    code, _ = _traced(folder, new, point.overwrite, [f"--trace={point.call}", inject])
    result.points += 1
    found = _version(folder / "bundle", old, new)
    if code is None:
        result.note("hangs", str(point))
    if found == "half":
        result.note("half", str(point))
    if found == "nothing" and point.overwrite:
        result.note("lost", str(point))
    result.published += found == "new"
    killed = kind == "signal" and code == -signal.SIGKILL
    if not killed and (code != PUBLISHED or found != "new") and (code != REFUSED or found == "new"):
        result.note("untyped", f"{point}, exit {code}, found {found}")
    for item in folder.glob(f".*{STAGING_SUFFIX}"):
        os.utime(item, (0, time.time() - AGE_SECONDS))
    publish(new, folder / "bundle", overwrite=True)
    if os.listdir(folder) != ["bundle"] or _version(folder / "bundle", old, new) != "new":
        result.note("left", f"{point}: {os.listdir(folder)}")


def _prepare(folder: Path, old: Files | None) -> None:
    for item in folder.iterdir():
        shutil.rmtree(item)
    if old is not None:
        publish(old, folder / "bundle", overwrite=False)


def _version(target: Path, old: Files, new: Files) -> str:
    if not target.exists():
        return "nothing"
    try:
        found = open_bundle(target, strict=True).manifest_bytes
    except OptimizeError:
        return "half"
    return {new[MANIFEST_FILE]: "new", old[MANIFEST_FILE]: "old"}.get(found, "half")


def _traced(
    folder: Path, new: Files, overwrite: bool, options: list[str]
) -> tuple[int | None, str]:
    """Publishes in a traced child; its exit code, -9 if killed, None if it hung; and the trace."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ours.close()
            theirs.sendall(b"ready")
            theirs.recv(1)
            code = _export(new, folder / "bundle", overwrite)
        finally:
            os._exit(code)
    theirs.close()
    # Traced from here on, the child has no calls of its own before those of the export.
    ours.recv(5)
    with tempfile.NamedTemporaryFile("r") as trace:
        command = ["strace", "--attach", str(child), "--output", trace.name, *options]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            said = tracer.stderr.readline() if tracer.stderr else ""
            ours.sendall(b"x")
            ours.close()
            status = _wait(child)
            tracer.communicate(timeout=HANG_SECONDS)
        finally:
            tracer.kill()
        if "attached" not in said:
            raise OSError(f"strace: {said.strip() or 'said nothing'}")
        return status, trace.read()


def _export(new: Files, target: Path, overwrite: bool) -> int:
    warnings.simplefilter("ignore")
    try:
        publish(new, target, overwrite)
    except ResourceError:
        return REFUSED
    except BaseException:
        return UNTYPED
    return PUBLISHED


def _wait(child: int) -> int | None:
    ends = time.monotonic() + HANG_SECONDS
    while time.monotonic() < ends:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench/crash_points.json"))
    parser.add_argument("--bundle", type=Path, help="instead of one made for this")
    parser.add_argument("--every", type=int, default=1, help="try one point of so many")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = given.bundle or small_bundle(Path(folder) / "small")
        (Path(folder) / "work").mkdir()
        result = sweep(bundle, Path(folder) / "work", given.every)
    sys.exit(finish(given.out, asdict(result), result.failed))


if __name__ == "__main__":
    main()

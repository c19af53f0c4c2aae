"""Bundles as attackers and other tools leave them, and machines that are short of something."""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from optimize.export.bundle import export_bundle
from optimize.runtime import load
from optimize.runtime.bundle import open_bundle
from optimize.runtime.errors import BundleError, IntegrityError, ResourceError
from optimize.runtime.manifest import Manifest, parse_manifest
from optimize.runtime.tensors import read_tensors, tensors_header


def files(manifest_path):
    """The package of a manifest, and the part of it that lists files."""
    package = json.loads(manifest_path.read_text())
    return package, package["additional_metadata"]["optimize"]["files"]


def in_child(function, *arguments):
    """What a function returns or raises in a forked child, as text; limits it sets end with it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # Whatever happens, a child must not go on as a second copy of the test run.
        try:
            try:
                said = f"returned {function(*arguments)}"
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writing, said.encode()[:4000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


def _zip(bundle, path, hostile):
    with zipfile.ZipFile(path, "w") as archive:
        for file in bundle.rglob("*.*"):
            archive.write(file, file.relative_to(bundle))
        if hostile:
            archive.writestr("../outside", "x")
    return path


def _tar(bundle, path, hostile):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        archive.add(bundle, "bundle")
        if hostile:
            link = tarfile.TarInfo("bundle/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc"
            archive.addfile(link)
    return path


@pytest.mark.parametrize("hostile", [False, True], ids=["plain", "hostile"])
@pytest.mark.parametrize(
    ("pack", "name", "kind"),
    [(_zip, "a.zip", "zip"), (_tar, "a.tar", "tar"), (_tar, "a.tar.gz", "gzip")],
)
def test_archives_are_not_extracted_but_refused_with_advice(
    tiny_bundle, tmp_path, pack, name, kind, hostile
):
    """C15"""
    path = pack(tiny_bundle, tmp_path / name, hostile)
    before = sorted(tmp_path.parent.rglob("*"))
    with pytest.raises(BundleError, match=f"found a {kind} archive, .*; extract it into a new"):
        load(path)
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_fifo_in_the_place_of_the_folder_does_not_wait(tmp_path):
    """C9"""
    os.mkfifo(tmp_path / "bundle")
    with pytest.raises(BundleError, match="found a file, expected a bundle folder"):
        load(tmp_path / "bundle")


def with_engine(bundle):
    """Adds an AOTInductor package, of which the content is never looked at, to a bundle."""
    package, listed = files(bundle / "manifest.json")
    ours = package["additional_metadata"]["optimize"]
    name = "engines/aoti/step.pt2"
    (bundle / "engines" / "aoti").mkdir(parents=True)
    (bundle / name).write_bytes(b"code and metadata of build 1")
    digest = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    listed[name] = {"size": 28, "sha256": digest}
    graph = ours["graphs"]["step"]
    ours["engines"]["aoti"] = {
        "device": "cpu",
        "precision": "float32",
        "built_with": {"torch": "0.0"},
        "needs": {},
        "graphs": {
            "step": {
                "file": name,
                "inputs": list(graph["inputs"]),
                "outputs": list(graph["outputs"]),
            }
        },
    }
    ours["targets"].append("aoti")
    (bundle / "manifest.json").write_text(json.dumps(package))
    return bundle / name


def test_native_code_of_another_build_is_found_before_anything_runs(bundle):
    """C19: code, metadata and weights of a target are verified together, whatever target runs."""
    code = with_engine(bundle)
    assert open_bundle(bundle).choice.target == "onnx"
    code.write_bytes(b"code and metadata of build 2")
    for target in ("onnx", "aoti"):
        with pytest.raises((IntegrityError, BundleError)):
            open_bundle(bundle, target=target, trusted=True)
    with pytest.raises(IntegrityError, match=r"engines/aoti/step\.pt2: found sha256"):
        open_bundle(bundle)


OFFSET = 5 * 2**30


def test_tensors_behind_four_gibibytes_are_read_where_they_lie(tmp_path):
    """C24: a sparse file."""
    header = tensors_header([("hole", "uint8", (OFFSET,)), ("last", "uint8", (4,))])
    path = tmp_path / "weights.safetensors"
    with path.open("wb") as file:
        file.write(header)
        file.seek(len(header) + OFFSET)
        file.write(b"last")
    found = read_tensors(np.memmap(path, np.uint8, "r"), "weights.safetensors")
    assert found["last"].offset == len(header) + OFFSET
    assert found["last"].array.tobytes() == b"last"


# SHA-256 of 4 GiB and one byte of zeros.
ZEROS, DIGEST = 2**32 + 1, "fbb82f7b353676bb562eb82157fcf0ea42c36492ca13ee56dbf82c08b6802c5c"


@pytest.mark.slow
def test_a_file_over_four_gibibytes_is_verified_in_little_memory(bundle):
    """C24: a sparse file that no graph needs, in a process that may not map as much."""
    with (bundle / "large.bin").open("wb") as file:
        file.truncate(ZEROS)
    package, listed = files(bundle / "manifest.json")
    listed["large.bin"] = {"size": ZEROS, "sha256": DIGEST}
    (bundle / "manifest.json").write_text(json.dumps(package))

    def verify():
        _limit_memory(2**30)
        return len(open_bundle(bundle, strict=True).manifest.files)

    assert in_child(verify) == "returned 4"


def _limit_memory(more):
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, mapped + more))


def test_weights_that_do_not_fit_in_memory_are_a_typed_error(bundle):
    """E7: sizes are of the files, so a manifest cannot ask for more than lies there."""
    size = 4 * 2**30
    with (bundle / "graphs" / "weights.safetensors").open("wb") as file:
        file.truncate(size)
    package, listed = files(bundle / "manifest.json")
    listed["graphs/weights.safetensors"]["size"] = size
    (bundle / "manifest.json").write_text(json.dumps(package))

    def read():
        _limit_memory(2**30)
        return load(bundle)

    said = in_child(read)
    assert said.startswith("ResourceError: graphs/weights.safetensors: 4294967296 bytes do not fit")


def test_memory_that_runs_out_in_a_command_is_exit_4(monkeypatch, tiny_bundle, capsys):
    """E7"""
    from optimize import cli
    from optimize.runtime import bundle as bundle_module

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(bundle_module, "open_bundle", fail)
    assert cli.run_command(["inspect", str(tiny_bundle)]) == 4
    assert "out of memory" in capsys.readouterr().err


def test_a_process_out_of_file_descriptors_says_so(bundle, tiny_program, tmp_path):
    """E9"""

    def without_descriptors(function):
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))
        return function()

    said = in_child(without_descriptors, lambda: open_bundle(bundle))
    assert said.startswith("ResourceError") and "Too many open files" in said
    target = tmp_path / "out"
    program = tiny_program()
    said = in_child(without_descriptors, lambda: export_bundle(program, target))
    assert said.startswith("ResourceError") and "Too many open files" in said
    assert not target.exists()


def test_an_export_needs_no_home_no_temporary_folder_and_no_friendly_umask(tiny_program, tmp_path):
    """E9: staging is beside the target, so no other file system is involved."""
    program = tiny_program()

    def export():
        os.environ.pop("HOME", None)
        os.environ["TMPDIR"] = "/nonexistent"
        os.umask(0o077)
        return load(export_bundle(program, tmp_path / "out"), threads=1).target

    assert in_child(export) == "returned onnx"
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*")}
    assert modes == {0o600, 0o700}


def test_a_deleted_working_folder_is_a_typed_error(tiny_program, tmp_path):
    """E9"""
    program = tiny_program()

    def export():
        (tmp_path / "gone").mkdir()
        os.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        return export_bundle(program, "out")

    assert in_child(export).startswith("ResourceError")


AUDIT = """
import json, os, sys

events = []
WATCHED = ("socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.system", "os.fork",
           "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod",
           "shutil.", "pickle.", "marshal.load", "ctypes.dlopen")

def hook(event, arguments):
    if not watching:
        return
    if event == "open" and isinstance(arguments[2], int):
        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC):
            events.append(f"{event} {arguments[0]!r}")
    elif event == "import":
        events.append(f"import {arguments[0]}")
    elif event.startswith(WATCHED):
        events.append(f"{event} {arguments!r}"[:200])

watching = False
sys.addaudithook(hook)
sys.dont_write_bytecode = True
from optimize.runtime import load
from optimize.runtime.errors import OptimizeError

load(sys.argv[1], threads=1)(seed=0, labels=[1])
watching = True
for path in sys.argv[1:]:
    try:
        load(path, threads=1)(seed=0, labels=[1])
    except OptimizeError:
        pass
watching = False
print(json.dumps(events))
"""


def test_opening_bundles_imports_writes_and_connects_to_nothing(tiny_bundle, tmp_path):
    """C20, E8: there is no cache on disk, so there is none to poison, fill or share."""
    hostile = Path(shutil.copytree(tiny_bundle, tmp_path / "hostile"))
    code = with_engine(hostile)
    for name in ("sitecustomize.py", "optimize.py", "onnx.py", "conftest.py"):
        (hostile / name).write_text("raise SystemExit(99)")
    damaged = Path(shutil.copytree(hostile, tmp_path / "damaged"))
    (damaged / "graphs" / "step.onnx").write_bytes(b"\x08\x0a")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    command = [sys.executable, "-W", "ignore", "-c", AUDIT]
    paths = [str(tiny_bundle), str(hostile), str(damaged)]
    done = subprocess.run(
        [*command, *paths], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert code.exists()


def test_loading_from_a_read_only_folder_works(bundle):
    """C23"""
    for path in (bundle, *bundle.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert load(bundle, threads=1)(seed=0, labels=[1])["image"].shape == (1, 1, 8, 8)
    for path in (bundle, *(item for item in bundle.rglob("*") if item.is_dir())):
        path.chmod(0o755)


def test_a_new_load_of_a_moved_bundle_fails_clearly(bundle, tmp_path):
    """C23"""
    session = load(bundle, threads=1)
    expected = session(seed=0, labels=[1])["image"]
    bundle.rename(tmp_path / "moved")
    with pytest.raises(BundleError, match="found nothing, expected a bundle folder"):
        load(bundle)
    assert (session(seed=0, labels=[1])["image"] == expected).all()
    assert isinstance(parse_manifest((tmp_path / "moved" / "manifest.json").read_bytes()), Manifest)


def test_a_disk_that_cannot_be_read_is_a_typed_error(bundle, monkeypatch):
    """E1: reading, too."""
    from optimize.runtime import bundle as bundle_module

    class Failing:
        def readinto(self, _):
            raise OSError(5, "Input/output error")

    with pytest.raises(ResourceError, match="x: cannot be read: Input/output error"):
        bundle_module._read_into(Failing(), memoryview(bytearray(1)), "x")

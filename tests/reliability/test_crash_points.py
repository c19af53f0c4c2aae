"""Exports that the system fails at a system call, and many exporters and readers at once."""

import multiprocessing
import shutil
import subprocess
import time

import pytest

from optimize.runtime.bundle import open_bundle
from optimize.runtime.errors import BundleError, ResourceError
from tests.loading import benchmark


@pytest.fixture(scope="module")
def crash_points():
    """The module benchmarks/crash_points.py."""
    with benchmark("crash_points") as module:
        yield module


def _may_trace():
    if shutil.which("strace") is None:
        return "strace is not installed"
    sleeper = subprocess.Popen(["sleep", "5"])
    try:
        tracer = subprocess.Popen(
            ["strace", "-p", str(sleeper.pid), "-o", "/dev/null"], stderr=subprocess.PIPE, text=True
        )
        said = tracer.stderr.readline()
        return "" if "attached" in said else f"strace may not trace here: {said.strip()}"
    finally:
        sleeper.kill()
        sleeper.wait()
        tracer.wait()


def test_a_failure_at_any_system_call_leaves_the_old_bundle_or_the_new(
    crash_points, tiny_bundle, tmp_path
):
    """E1, E2, E3: every fifth point; benchmarks/crash_points.py tries all."""
    if reason := _may_trace():
        pytest.skip(reason)
    result = crash_points.sweep(tiny_bundle, tmp_path, every=5)
    assert result.problems == []
    assert result.failed == 0
    assert result.points > 60
    assert 0 < result.published < result.points


def _export(files, target, overwrite, start, outcomes):
    from crash_points import publish

    start.wait()
    try:
        publish(files, target, overwrite)
        outcomes.put(files["manifest.json"])
    except ResourceError as error:
        outcomes.put(None if "exists" in str(error) else repr(error))


def _read(target, stop, outcomes):
    seen, reads = set(), 0
    while not stop.is_set():
        try:
            seen.add(open_bundle(target, strict=True).manifest_bytes)
            reads += 1
        except BundleError as error:
            # Before the first exporter of the first round there is nothing yet.
            if "found nothing" not in str(error):
                outcomes.put(f"reader: {error}")
                return
    outcomes.put((reads, seen))


def _versions(crash_points, bundle, count):
    files = crash_points.files_of(bundle)
    manifest = crash_points.parse_manifest(files["manifest.json"])
    made = []
    for number in range(count):
        generator = manifest.generator.model_copy(update={"version": str(number)})
        changed = manifest.model_copy(update={"generator": generator})
        made.append({**files, "manifest.json": crash_points.dump_manifest(changed)})
    return made


def test_of_sixteen_exporters_one_wins_and_every_reader_sees_a_whole_bundle(
    crash_points, tiny_bundle, tmp_path
):
    """E5, E6"""
    fork = multiprocessing.get_context("fork")
    versions = _versions(crash_points, tiny_bundle, 16)
    stop, heard = fork.Event(), fork.Queue()
    latest = tmp_path / "latest"
    readers = [fork.Process(target=_read, args=(latest, stop, heard)) for _ in range(3)]
    for reader in readers:
        reader.start()
    for round_ in range(4):
        # A new target: exactly one wins.
        start, outcomes = fork.Barrier(16), fork.Queue()
        target = tmp_path / f"bundle{round_}"
        exporters = [
            fork.Process(target=_export, args=(files, target, False, start, outcomes))
            for files in versions
        ]
        won = [item for item in _outcomes(exporters, outcomes) if item is not None]
        assert len(won) == 1
        assert open_bundle(target, strict=True).manifest_bytes == won[0]
        # One that readers have open is replaced by all: the last one stays.
        start, outcomes = fork.Barrier(16), fork.Queue()
        exporters = [
            fork.Process(target=_export, args=(files, latest, True, start, outcomes))
            for files in versions
        ]
        wrote = _outcomes(exporters, outcomes)
        assert sorted(wrote) == sorted(files["manifest.json"] for files in versions)
        assert open_bundle(latest, strict=True).manifest_bytes in wrote
    stop.set()
    known = {files["manifest.json"] for files in versions}
    for _ in readers:
        said = heard.get(timeout=30)
        assert not isinstance(said, str), said
        reads, seen = said
        assert reads > 0
        assert seen <= known
    for reader in readers:
        reader.join()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [*(f"bundle{round_}" for round_ in range(4)), "latest"]


def _outcomes(exporters, outcomes):
    for exporter in exporters:
        exporter.start()
    found = [outcomes.get(timeout=60) for _ in exporters]
    for exporter in exporters:
        exporter.join()
    assert [item for item in found if isinstance(item, str)] == []
    return found


def test_an_export_after_the_clock_went_backwards_leaves_the_living_alone(
    crash_points, tiny_bundle, tmp_path, monkeypatch
):
    """E9: ages of staging folders are then negative; nobody's is removed, all of ours are."""
    (version,) = _versions(crash_points, tiny_bundle, 1)
    other = tmp_path / ".bundle.0123456789abcdef.staging"
    other.mkdir()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    crash_points.publish(version, tmp_path / "bundle", overwrite=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "bundle"]

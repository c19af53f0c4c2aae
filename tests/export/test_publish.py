"""Publication is atomic: whatever fails, a reader finds the old bundle or the new one, whole."""

import errno
import os
import shutil
import signal
import threading
import time
import warnings

import pytest

from optimize.export import publish
from optimize.export.publish import staged
from optimize.runtime.errors import ResourceError

FILES = {"manifest.json": b"new", "graphs/a.onnx": b"a" * 5000, "graphs/deep/b.bin": b"b" * 70_000}
CALLS = ["mkdir", "open", "write", "fsync", "close"]


def write(path, overwrite=False, files=FILES):
    with staged(path, overwrite=overwrite) as staging:
        for name, content in files.items():
            staging.write(name, [content[:100], memoryview(content[100:])])
        staging.publish()


def contents(path):
    """Path → bytes of every file, or None when there is no folder."""
    if not path.exists():
        return None
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def old_bundle(path):
    old = {"manifest.json": b"old", "graphs/a.onnx": b"o"}
    write(path, files=old)
    return old


class FailingCalls:
    """Makes the n-th system call of the writer do something else."""

    def __init__(self, monkeypatch, turn, action):
        self.count = 0
        for name in CALLS:
            monkeypatch.setattr(publish.os, name, self._wrapped(getattr(os, name), turn, action))
        rename = publish._renameat2
        monkeypatch.setattr(publish, "_renameat2", self._wrapped(rename, turn, action))

    def _wrapped(self, function, turn, action):
        def call(*args, **kwargs):
            self.count += 1
            if self.count == turn:
                action()
            return function(*args, **kwargs)

        return call


@pytest.mark.parametrize("replaces", [False, True], ids=["fresh", "overwrite"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
def test_an_error_at_any_system_call_leaves_the_old_bundle(tmp_path, monkeypatch, code, replaces):
    """E1, E3"""
    durability_unknown = 0
    for turn in range(1, 200):
        target = tmp_path / f"bundle{turn}"
        old = old_bundle(target) if replaces else None

        def fail():
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            calls = FailingCalls(patch, turn, fail)
            try:
                write(target, overwrite=replaces)
                published = True
            except ResourceError as error:
                published = False
                assert os.strerror(code) in str(error)
        for warning in warned:
            assert "published, durability unknown" in str(warning.message)
        expected = {name: FILES[name] for name in sorted(FILES)} if published else old
        assert contents(target) == expected, f"turn {turn}"
        left = [name for name in os.listdir(tmp_path) if name.endswith(publish.STAGING_SUFFIX)]
        # A failure while the replaced folder is removed leaves it to the next export.
        assert left == [] or (published and replaces), f"turn {turn}"
        for name in left:
            shutil.rmtree(tmp_path / name)
        durability_unknown += len(warned)
        if calls.count < turn:
            assert turn > 20
            assert durability_unknown == 3, "open, fsync and close of the parent folder"
            return
    pytest.fail("the writer never ran out of system calls")


@pytest.mark.parametrize("replaces", [False, True], ids=["fresh", "overwrite"])
def test_a_kill_at_any_system_call_leaves_the_old_bundle_or_the_new(
    tmp_path, monkeypatch, replaces
):
    """E2"""
    new = {name: FILES[name] for name in sorted(FILES)}
    for turn in range(1, 200):
        target = tmp_path / f"bundle{turn}"
        old = old_bundle(target) if replaces else None
        child = os.fork()
        if child == 0:
            FailingCalls(monkeypatch, turn, lambda: os.kill(os.getpid(), signal.SIGKILL))
            try:
                write(target, overwrite=replaces)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert contents(target) in (old, new), f"turn {turn}"
        if os.WIFEXITED(status):
            assert contents(target) == new
            assert turn > 20
            break
    else:
        pytest.fail("the writer never ran out of system calls")


def test_staging_of_a_killed_export_is_removed_by_the_next_one(tmp_path, monkeypatch):
    """E2"""
    stale = tmp_path / f".bundle.0123456789abcdef{publish.STAGING_SUFFIX}"
    (stale / "graphs").mkdir(parents=True)
    (stale / "graphs" / "a.onnx").write_bytes(b"half")
    write(tmp_path / "bundle")
    assert stale.exists(), "it is too young to tell from one whose writer is about to lock it"
    past = time.time() - 2 * publish._STALE_SECONDS
    os.utime(stale, (past, past))
    write(tmp_path / "bundle", overwrite=True)
    assert os.listdir(tmp_path) == ["bundle"]


def test_staging_of_a_living_export_is_left_alone(tmp_path, monkeypatch):
    """E5"""
    monkeypatch.setattr(publish, "_STALE_SECONDS", -1.0)
    target = tmp_path / "bundle"
    with staged(target, overwrite=True) as first:
        first.write("manifest.json", [b"first"])
        write(target)
        first.publish()
    assert contents(target) == {"manifest.json": b"first"}


def test_of_two_exporters_one_wins_whole_and_the_other_is_refused(tmp_path):
    """E5"""
    for round_ in range(20):
        target = tmp_path / f"bundle{round_}"
        start = threading.Barrier(4)
        outcomes = []

        def export(name, target=target, start=start, outcomes=outcomes):
            files = {key: name.encode() * 2000 for key in FILES}
            start.wait()
            try:
                write(target, files=files)
                outcomes.append(name)
            except ResourceError as error:
                assert "exists" in str(error)

        threads = [threading.Thread(target=export, args=(name,)) for name in "wxyz"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = outcomes
        assert set(contents(target).values()) == {winner.encode() * 2000}


def test_an_empty_folder_is_not_replaced_silently(tmp_path):
    """E5: plain rename would replace it."""
    target = tmp_path / "bundle"
    with staged(target, overwrite=False) as staging:
        staging.write("manifest.json", [b"new"])
        target.mkdir()
        with pytest.raises(ResourceError, match="exists"):
            staging.publish()
    assert contents(target) == {}


def test_a_reader_sees_one_version_throughout_an_overwrite(tmp_path):
    """E6"""
    target = tmp_path / "bundle"
    old_bundle(target)
    root = os.open(target, os.O_RDONLY)
    try:
        write(target, overwrite=True)
        with pytest.raises(FileNotFoundError):
            os.open("graphs/deep/b.bin", os.O_RDONLY, dir_fd=root)
    finally:
        os.close(root)
    assert contents(target)["manifest.json"] == b"new"


def test_systems_without_renameat2_fall_back_to_a_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "_renameat2", publish._rename_locked)
    target = tmp_path / "bundle"
    old_bundle(target)
    with pytest.raises(ResourceError, match="exists"):
        write(target)
    write(target, overwrite=True)
    assert contents(target)["manifest.json"] == b"new"
    assert os.listdir(tmp_path) == ["bundle"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda p: p.write_bytes(b""), "found a file or link"),
        (lambda p: p.symlink_to(p.parent), "found a file or link"),
        (lambda p: p.mkdir(), "exists; choose another path or pass overwrite=True"),
    ],
    ids=["file", "link", "folder"],
)
def test_a_target_in_the_way_is_found_before_the_work(tmp_path, prepare, message):
    """E4"""
    target = tmp_path / "bundle"
    prepare(target)
    with pytest.raises(ResourceError, match=message), staged(target, overwrite=False):
        pytest.fail("work was started")


def test_a_missing_parent_is_found_before_the_work(tmp_path):
    """E4"""
    with pytest.raises(ResourceError, match="no such folder"):
        write(tmp_path / "missing" / "bundle")


def test_an_unwritable_parent_is_found_before_the_work(tmp_path, monkeypatch):
    """E4: as root everything is writable, so the answer of the system is replaced."""
    monkeypatch.setattr(publish.os, "access", lambda *_: False)
    with pytest.raises(ResourceError, match="no permission to write"):
        write(tmp_path / "bundle")

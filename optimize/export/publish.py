"""Writes a folder so that a reader sees all of it or none.

Files go to a staging folder beside the target and are fsynced; then one rename publishes it. A
failure or a kill at any point leaves the target as it was. The staging folder is locked by its
writer; one that nobody locks is what a killed export left, and the next export removes it.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from optimize.runtime.bundle import STAGING_SUFFIX
from optimize.runtime.errors import ResourceError
from optimize.runtime.manifest import FileEntry

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
_AT_FDCWD = -100
_STALE_SECONDS = 60.0
"""Age below which an unlocked staging folder may be one whose writer is about to lock it."""

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT}


class Staging:
    """A folder being written; made by `staged`."""

    def __init__(self, folder: Path, target: Path, overwrite: bool) -> None:
        self._folder = folder
        self._target = target
        self._overwrite = overwrite
        self._folders = {folder}

    def write(self, name: str, chunks: Iterable[bytes | memoryview]) -> FileEntry:
        """Writes and fsyncs one file; returns its size and hash."""
        path = self._folder / name
        for parent in reversed(path.relative_to(self._folder).parents):
            below = self._folder / parent
            if below not in self._folders:
                os.mkdir(below)
                self._folders.add(below)
        digest = hashlib.sha256()
        size = 0
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                _write_all(descriptor, memoryview(chunk))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return FileEntry(size=size, sha256=digest.hexdigest())

    def path(self, name: str) -> Path:
        """Where a file that was written lies until the folder is published."""
        return self._folder / name

    def publish(self) -> None:
        """Makes the folder visible under the target's name.

        Raises:
            ResourceError: the target exists and may not be replaced.
        """
        for folder in sorted(self._folders, reverse=True):
            _sync_folder(folder)
        _rename_into_place(self._folder, self._target, self._overwrite)
        try:
            _sync_folder(self._target.parent)
        except OSError as error:
            warnings.warn(
                f"{self._target}: published, durability unknown: the system could not sync the "
                f"parent folder ({error.strerror}); verify the bundle after the next start",
                stacklevel=3,
            )


@contextmanager
def staged(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[Staging]:
    """A staging folder beside `path`; removed on the way out unless it was published.

    Args:
        path: the folder to publish; its parent must exist.
        overwrite: replace a folder that exists.
    Raises:
        ResourceError: the target exists, its parent cannot be written, or the disk is full; found
            before any work where possible.
    """
    target = absolute(path)
    check_target(target, overwrite)
    _remove_stale(target)
    folder = target.parent / f".{target.name}.{secrets.token_hex(8)}{STAGING_SUFFIX}"
    lock = -1
    try:
        with _as_resource_error(target):
            os.mkdir(folder)
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Staging(folder, target, overwrite)
    finally:
        # After an exchange the staging name holds the old folder; both are removed the same way.
        # What cannot be removed now, the next export removes; rmtree ignores most errors, not all.
        with suppress(OSError):
            shutil.rmtree(folder, ignore_errors=True)
        if lock >= 0:
            with suppress(OSError):
                os.close(lock)


@contextmanager
def _as_resource_error(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "free some space" if error.errno in _DISK_ERRORS else "check the disk and its rights"
        raise ResourceError(
            f"{target}: cannot be written: {error.strerror}; {hint} and export again. "
            "What was there before is unchanged."
        ) from error


def absolute(path: str | os.PathLike[str]) -> Path:
    """The path from the root.

    Raises:
        ResourceError: the working folder is gone.
    """
    with _as_resource_error(Path(path)):
        return Path(os.path.abspath(path))


def check_target(target: Path, overwrite: bool) -> None:
    """Refuses a target that cannot be written, before any work is done for it.

    Raises:
        ResourceError: says what is in the way.
    """
    if not target.name or len(os.fsencode(target.name)) > 200:
        raise ResourceError(
            f"{target}: found no usable folder name, expected a path to a new folder"
        )
    with _as_resource_error(target):
        if not target.parent.is_dir():
            raise ResourceError(f"{target.parent}: found no such folder; make it first")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise ResourceError(
                f"{target.parent}: found no permission to write; choose another folder"
            )
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise ResourceError(f"{target}: found a file or link, expected a folder or nothing")
        if target.exists() and not overwrite:
            raise _exists(target)


def _exists(target: Path) -> ResourceError:
    return ResourceError(f"{target}: exists; choose another path or pass overwrite=True")


def _write_all(descriptor: int, data: memoryview) -> None:
    data = data.cast("B")
    while len(data):
        data = data[os.write(descriptor, data[: 64 * 2**20]) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_into_place(folder: Path, target: Path, overwrite: bool) -> None:
    """One atomic step: the target is the old folder before it and the new one after it."""
    try:
        rename_exclusive(folder, target)
        return
    except FileExistsError:
        if not overwrite:
            raise _exists(target) from None
    try:
        rename_exchange(folder, target)
    except FileNotFoundError:
        rename_exclusive(folder, target)


def rename_exclusive(source: Path, target: Path) -> None:
    """Renames, failing if the target exists, even as an empty folder."""
    _renameat2(source, target, RENAME_NOREPLACE)


def rename_exchange(source: Path, target: Path) -> None:
    """Swaps two folders."""
    _renameat2(source, target, RENAME_EXCHANGE)


def _renameat2(source: Path, target: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        _rename_locked(source, target, flags)
        return
    result = libc.renameat2(
        _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)
    )
    if result == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        _rename_locked(source, target, flags)
        return
    raise OSError(number, os.strerror(number), str(target))


def _rename_locked(source: Path, target: Path, flags: int) -> None:
    """For systems without renameat2: a lock among exporters, and two renames for a swap.

    Between the two renames the target does not exist, so a reader may find nothing there.
    """
    lock = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if flags == RENAME_NOREPLACE:
            if target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            os.rename(source, target)
            return
        aside = source.with_name(source.name.removesuffix(STAGING_SUFFIX) + f".old{STAGING_SUFFIX}")
        os.rename(target, aside)
        try:
            os.rename(source, target)
        except OSError:
            os.rename(aside, target)
            raise
        os.rename(aside, source)
    finally:
        os.close(lock)


def _remove_stale(target: Path) -> None:
    """Removes staging folders of this target whose writer is gone.

    A parent that cannot be listed keeps them; whether it can be written shows later.
    """
    prefix = f".{target.name}."
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(target.parent)
    for name in names:
        if not (name.startswith(prefix) and name.endswith(STAGING_SUFFIX)):
            continue
        folder = target.parent / name
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if time.time() - os.fstat(lock).st_mtime < _STALE_SECONDS:
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)

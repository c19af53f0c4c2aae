"""The file in which the trials of a study are kept, for several processes and for a later one."""

import json
import os
from pathlib import Path

from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from optimize.ir.errors import RecipeError
from optimize.runtime.errors import ResourceError


def check_storage(path: Path) -> None:
    """Refuses a path that cannot be a journal, before any work is done.

    Raises:
        RecipeError: it is something else.
        ResourceError: it cannot be read or written, or its folder is missing.
    """
    if path.is_dir():
        raise RecipeError(f"--storage {path}: found a folder, expected a file, new or of a study")
    if not path.parent.is_dir():
        raise ResourceError(f"--storage {path}: found no folder {path.parent}; make it first")
    if not path.exists():
        if not os.access(path.parent, os.W_OK):
            raise ResourceError(f"--storage {path}: {path.parent} cannot be written")
        return
    if not os.access(path, os.R_OK | os.W_OK):
        raise ResourceError(f"--storage {path}: cannot be read and written")
    with path.open("rb") as file:
        first = file.readline(1 << 20)
    if first and not _is_log(first):
        raise RecipeError(
            f"--storage {path}: found a file that is no journal of a study; name a new file, or "
            "one that an earlier `optimize tune` wrote"
        )


def open_storage(path: Path | None) -> BaseStorage:
    """A storage in a file, or one in memory without a path."""
    if path is None:
        return InMemoryStorage()
    check_storage(path)
    lock = JournalFileSymlinkLock(str(path))
    _cut_torn_line(path, lock)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _cut_torn_line(path: Path, lock: JournalFileSymlinkLock) -> None:
    """Cuts off the half of a line that a killed process left, which no reader gets past."""
    if not path.exists():
        return
    lock.acquire()
    try:
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _is_log(line: bytes) -> bool:
    try:
        found = json.loads(line)
    except ValueError:
        # The only line there is may be half of one.
        return line.startswith(b'{"op_code"') and not line.endswith(b"\n")
    return isinstance(found, dict) and "op_code" in found

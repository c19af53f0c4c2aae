"""Writes a file so that a reader sees the old content or the new, never half of it."""

import os
from pathlib import Path

from optimize.runtime.errors import ResourceError


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file, whole or not at all, into a folder that is made where there is none.

    Args:
        path: of the file; what stands there is replaced.
        content: bytes, or text that becomes UTF-8.
    Raises:
        ResourceError: it cannot be written; what stood there still does.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{path.parent}: cannot be written: {error.strerror}") from error
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ResourceError(f"{path}: cannot be written: {error.strerror}") from error

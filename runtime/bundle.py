"""Opens a bundle: every byte is verified before anything uses it, and the verified bytes are used.

A bundle is opened through one folder descriptor, so it stays the same bundle when another is
published under its name meanwhile. Each file is opened once, without following links and without
waiting for special files, and read into memory while it is hashed.
"""

import errno
import hashlib
import os
import stat
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.runtime.errors import (
    BundleError,
    CorruptBundle,
    IntegrityError,
    ResourceError,
    UnsafeBundle,
)
from optimize.runtime.manifest import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    SIGNATURE_FILE,
    TABLES_FILE,
    WEIGHTS_FILE,
    FileEntry,
    Manifest,
    parse_manifest,
)
from optimize.runtime.signature import MAX_SIGNATURE_BYTES, check_signature
from optimize.runtime.targets import Choice, choose
from optimize.runtime.tensors import StoredTensor, read_tensors
from optimize.runtime.tokenizer_file import check_tokenizer_size

STAGING_SUFFIX = ".staging"
"""How the name of an unfinished export ends."""

CHUNK_BYTES = 4 * 2**20
ARCHIVES = (
    ("zip", 0, b"PK\x03\x04"),
    ("zip", 0, b"PK\x05\x06"),
    ("tar", 257, b"ustar"),
    ("gzip", 0, b"\x1f\x8b"),
    ("bzip2", 0, b"BZh"),
    ("xz", 0, b"\xfd7zXZ\x00"),
    ("zstd", 0, b"\x28\xb5\x2f\xfd"),
)
"""(kind, place of its mark, the mark)."""

MAX_ATTEMPTS = 20
"""Times a bundle is opened anew because an export replaced it meanwhile."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        manifest: what it says.
        models: role → ONNX protobuf.
        weights: the tensors of the weights file, views of one buffer.
        tables: name → [steps, ...].
        choice: the target that runs.
        engine_files: path → bytes of its native code, empty for "onnx".
        tokenizer: content of the file that `manifest.prompting` names, empty without one.
        unlisted: files in the folder that the manifest does not name; never read.
        manifest_bytes: content of manifest.json.
        provenance: "unsigned", "signed, not checked" or "signed by KEY".
    """

    manifest: Manifest
    models: Mapping[str, bytes]
    weights: Mapping[str, StoredTensor]
    tables: Mapping[str, NDArray[Any]]
    choice: Choice
    engine_files: Mapping[str, NDArray[np.uint8]]
    tokenizer: bytes
    unlisted: tuple[str, ...]
    manifest_bytes: bytes = b""
    provenance: str = "unsigned"


def open_bundle(
    path: str | os.PathLike[str],
    *,
    target: str | None = None,
    trusted: bool = False,
    strict: bool = False,
    public_key: bytes | None = None,
) -> Bundle:
    """Reads and verifies a bundle.

    Args:
        path: the folder.
        target: what shall run, see `optimize.runtime.targets.choose`; only its files are kept.
        trusted: whether native code may be chosen.
        strict: refuse files that the manifest does not name, instead of warning.
        public_key: Ed25519, PEM; refuses a bundle that this key did not sign. One that it signed
            is trusted.
    Raises:
        BundleError: not a bundle, or an unfinished export.
        DeviceError: this machine cannot run the target.
        CorruptBundle, IntegrityError, UnsafeBundle, VersionError: see `optimize.runtime.errors`.
        ResourceError: the system refuses to open or read it.
    """
    for attempt in range(1, MAX_ATTEMPTS + 1):
        root = _open_root(Path(path))
        try:
            return _open_in(root, Path(path), target, trusted, strict, public_key)
        except (BundleError, OSError) as error:
            # An export that replaces a bundle removes the old folder, from under its readers too.
            if attempt < MAX_ATTEMPTS and _was_replaced(root, path):
                continue
            if isinstance(error, OSError):
                raise ResourceError(f"{path}: cannot be read: {error.strerror}") from error
            raise
        finally:
            os.close(root)
    raise AssertionError("the last attempt returns or raises")


def _archive(path: Path) -> str | None:
    """Which kind of archive a file is, by its first bytes; None for others."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            head = file.read(512)
    except (OSError, ValueError):
        return None
    return next((kind for kind, place, magic in ARCHIVES if head[place:].startswith(magic)), None)


def _was_replaced(root: int, path: str | os.PathLike[str]) -> bool:
    """Whether another folder has the name that this one was opened by, or none has."""
    try:
        return not os.path.samestat(os.fstat(root), os.stat(path))
    except OSError:
        return True


def _open_in(
    root: int,
    path: Path,
    target: str | None,
    trusted: bool,
    strict: bool,
    public_key: bytes | None,
) -> Bundle:
    raw = read_manifest(root, path)
    provenance = _provenance(root, path, raw, public_key)
    manifest = parse_manifest(raw)
    ours = {*manifest.files, MANIFEST_FILE, SIGNATURE_FILE}
    unlisted = tuple(sorted(_listing(root) - ours))
    if unlisted:
        text = f"{path}: found files the manifest does not name: {', '.join(unlisted[:5])}"
        if strict:
            raise IntegrityError(f"{text}; remove them")
        warnings.warn(f"{text}; they are not used", stacklevel=4)
    choice = choose(manifest, target, trusted or public_key is not None)
    needed = {*(graph.file for graph in manifest.graphs.values()), TABLES_FILE}
    engine = manifest.engines.get(choice.target)  # type: ignore[call-overload]
    weights_file = WEIGHTS_FILE if engine is None else engine.weights_file
    engine_names = () if engine is None else [item.file for item in engine.graphs.values()]
    needed.update(engine_names, () if weights_file is None else (weights_file,))
    prompting = manifest.prompting
    if prompting is not None:
        needed.add(prompting.tokenizer)
        check_tokenizer_size(prompting.tokenizer, manifest.files[prompting.tokenizer].size)
    content: dict[str, NDArray[np.uint8]] = {}
    for name, entry in sorted(manifest.files.items()):
        data = _read_file(root, name, entry, keep=name in needed)
        if data is not None:
            content[name] = data
    tables = read_tensors(content[TABLES_FILE], TABLES_FILE)
    return Bundle(
        manifest=manifest,
        models={role: content[graph.file].tobytes() for role, graph in manifest.graphs.items()},
        weights={} if weights_file is None else read_tensors(content[weights_file], weights_file),
        tables={name: tensor.array for name, tensor in tables.items()},
        choice=choice,
        engine_files={name: content[name] for name in engine_names},
        tokenizer=b"" if prompting is None else content[prompting.tokenizer].tobytes(),
        unlisted=unlisted,
        manifest_bytes=raw,
        provenance=provenance,
    )


def read_file(path: str | os.PathLike[str], name: str) -> NDArray[np.uint8] | None:
    """The verified bytes of one file that the manifest names; None where it names none such.

    Raises:
        BundleError, ResourceError: as for `open_bundle`.
    """
    root = _open_root(Path(path))
    try:
        manifest = parse_manifest(read_manifest(root, Path(path)))
        entry = manifest.files.get(name)
        return None if entry is None else _read_file(root, name, entry, keep=True)
    finally:
        os.close(root)


def _open_root(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        if archive := _archive(path):
            raise BundleError(
                f"{path}: found a {archive} archive, expected a bundle folder; extract it into a "
                "new folder, with a tool that keeps members inside it (`python -m zipfile -e`, or "
                "tarfile with filter='data'), and load that"
            ) from error
        # By the error: a second look could find what an export published meanwhile.
        kind = "a file" if isinstance(error, NotADirectoryError) else "nothing"
        raise BundleError(f"{path}: found {kind}, expected a bundle folder") from error
    except ValueError as error:
        raise BundleError(f"found path {str(path)!r}, expected a bundle folder") from error
    except OSError as error:
        raise ResourceError(f"{path}: cannot be opened: {error.strerror}") from error


def _provenance(
    root: int, path: str | os.PathLike[str], manifest: bytes, public_key: bytes | None
) -> str:
    """What the signature says; it is checked before anything else is read."""
    try:
        descriptor = _open_inside(root, SIGNATURE_FILE)
    except FileNotFoundError:
        signature = None
    else:
        with os.fdopen(descriptor, "rb") as file:
            signature = file.read(MAX_SIGNATURE_BYTES + 1)
    if public_key is None:
        return "unsigned" if signature is None else "signed, not checked"
    try:
        return f"signed by {check_signature(manifest, signature, public_key)[:16]}"
    except BundleError as error:
        raise type(error)(f"{path}: {error}") from error


def read_manifest(root: int, path: Path) -> bytes:
    """The bytes of the manifest in an open folder.

    Raises:
        BundleError: there is none, or more than a manifest may have; `path` is for the message.
    """
    try:
        descriptor = _open_inside(root, MANIFEST_FILE)
    except FileNotFoundError as error:
        if path.name.endswith(STAGING_SUFFIX):
            raise BundleError(
                f"{path}: an unfinished export; export again, it is removed then"
            ) from error
        raise BundleError(
            f"{path}: found no {MANIFEST_FILE}, so this is not a bundle; give the folder that "
            "`export` wrote"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        raw = file.read(MAX_MANIFEST_BYTES + 1)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise CorruptBundle(f"{MANIFEST_FILE}: found more than {MAX_MANIFEST_BYTES} bytes")
    return raw


def _open_inside(root: int, name: str) -> int:
    """A descriptor of a regular file below the root; no component may be a link.

    Raises:
        UnsafeBundle: a link, or something that is not a regular file.
        FileNotFoundError: there is nothing of this name.
    """
    *folders, last = name.split("/")
    folder = os.dup(root)
    try:
        for part in folders:
            below = os.open(
                part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder
            )
            os.close(folder)
            folder = below
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        descriptor = os.open(last, flags, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EMLINK):
            raise UnsafeBundle(
                f"{name}: found a link or special file, expected a regular file; copy the bundle "
                "with links resolved (cp -rL)"
            ) from error
        raise ResourceError(f"{name}: cannot be opened: {error.strerror}") from error
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnsafeBundle(f"{name}: found a folder or special file, expected a regular file")
    return descriptor


def _read_file(root: int, name: str, entry: FileEntry, keep: bool) -> NDArray[np.uint8] | None:
    """The verified content of a file, or None when it is only verified."""
    try:
        descriptor = _open_inside(root, name)
    except FileNotFoundError as error:
        raise IntegrityError(f"{name}: the file is missing; copy the whole bundle again") from error
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry.size:
            raise _differs(name, f"{size} bytes", f"{entry.size}")
        try:
            data = np.empty(size if keep else min(size, 2 * CHUNK_BYTES), dtype=np.uint8)
        except MemoryError as error:
            raise ResourceError(f"{name}: {size} bytes do not fit in memory") from error
        found = _read_hashed(file, data.data, size, name)
    if found != entry.sha256:
        raise _differs(name, f"sha256 {found}", entry.sha256)
    if not keep:
        return None
    data.flags.writeable = False
    return data


def _read_hashed(file: Any, memory: memoryview, size: int, name: str) -> str:
    """Reads a file into memory, or through its two halves in turns, and returns the SHA-256.

    A chunk is hashed by another thread while the next one is read.
    """
    digest = hashlib.sha256()
    position = step = 0
    with ThreadPoolExecutor(1) as hasher:
        hashed: Future[None] | None = None
        while position < size:
            start = position if len(memory) >= size else step % 2 * CHUNK_BYTES
            view = memory[start : start + min(CHUNK_BYTES, size - position)]
            count = _read_into(file, view, name)
            if hashed is not None:
                hashed.result()
            if count == 0:
                raise _differs(name, f"{position} bytes", f"{size}")
            hashed = hasher.submit(digest.update, view[:count])
            position, step = position + count, step + 1
    return digest.hexdigest()


def _read_into(file: Any, view: memoryview, name: str) -> int:
    try:
        return int(file.readinto(view))
    except OSError as error:
        raise ResourceError(f"{name}: cannot be read: {error.strerror}") from error


def _differs(name: str, found: str, expected: str) -> IntegrityError:
    return IntegrityError(
        f"{name}: found {found}, expected {expected} as the manifest says; copy the bundle again"
    )


def _listing(root: int) -> set[str]:
    """Paths of everything in the folder that is not a folder; links are named, not followed."""
    found: set[str] = set()
    for folder, folders, files, descriptor in os.fwalk(".", dir_fd=root, follow_symlinks=False):
        below = os.path.relpath(folder, ".")
        prefix = "" if below == "." else f"{below}/"
        links = [name for name in folders if _is_link(name, descriptor)]
        found.update(f"{prefix}{name}" for name in (*files, *links))
        if len(found) > 100_000:
            raise UnsafeBundle("found more than 100000 files, expected a bundle")
    return found


def _is_link(name: str, folder: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)

"""Puts a signature into a bundle, or checks the one it has."""

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path

from optimize.runtime.bundle import open_bundle, read_manifest
from optimize.runtime.errors import IntegrityError, ResourceError
from optimize.runtime.manifest import SIGNATURE_FILE
from optimize.runtime.signature import make_signature, parse_signature


def sign_bundle(
    path: str | os.PathLike[str], private_key: bytes, password: bytes | None = None
) -> str:
    """Signs a bundle, replacing a signature it has; every file is verified first.

    A reader finds the old signature or the new one, whole.

    Args:
        path: the bundle's folder.
        private_key: Ed25519, PEM.
        password: of the key, if it has one.
    Returns:
        The id of the key: SHA-256 of the public key in DER.
    Raises:
        BundleError: the bundle is damaged.
        RuntimeInputError: the key cannot be read, or is of another kind.
        ResourceError: the bundle cannot be written, or cryptography is not installed.
    """
    manifest = open_bundle(path, target="onnx").manifest_bytes
    content = make_signature(manifest, private_key, password)
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if read_manifest(root, Path(path)) != manifest:
                raise IntegrityError(f"{path}: was replaced while it was signed; sign it again")
            _write(root, content)
        finally:
            os.close(root)
    except OSError as error:
        raise ResourceError(
            f"{path}: the signature cannot be written: {error.strerror}; check the disk and its "
            "rights"
        ) from error
    return parse_signature(content).key


def _write(root: int, content: bytes) -> None:
    # Signers take turns, so what another left behind is of one that was killed.
    fcntl.flock(root, fcntl.LOCK_EX)
    for name in os.listdir(root):
        if name.startswith(f".{SIGNATURE_FILE}."):
            os.unlink(name, dir_fd=root)
    name = f".{SIGNATURE_FILE}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(name, flags, 0o644, dir_fd=root), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(name, SIGNATURE_FILE, src_dir_fd=root, dst_dir_fd=root)
    except BaseException:
        with suppress(OSError):
            os.unlink(name, dir_fd=root)
        raise
    os.fsync(root)

"""Signatures of bundles: a file beside the manifest says who vouches for it.

The manifest has the hash of every other file, so a signature of the manifest is one of the whole
bundle. The file is JSON:

    {"format": "optimize-signature", "algorithm": "ed25519", "key": SHA-256 of the public key,
     "manifest_sha256": …, "signature": base64}

Keys are those of OpenSSL, in PEM:

    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out key.pub.pem
"""

import base64
import binascii
import hashlib
import json
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from optimize.runtime.errors import (
    CorruptBundle,
    IntegrityError,
    ResourceError,
    RuntimeInputError,
    UnsafeBundle,
)
from optimize.runtime.loop import Data
from optimize.runtime.manifest import SIGNATURE_FILE, Digest
from optimize.runtime.tensors import strict_json

MAX_SIGNATURE_BYTES = 64 * 2**10
_PURPOSE = b"optimize bundle manifest, version 1\n"
"""What is signed begins so: the key's signature of anything else is none of a bundle."""


class SignatureEntry(Data):
    """The contents of the signature file; `key` is the SHA-256 of the public key in DER."""

    format: Literal["optimize-signature"]
    algorithm: Literal["ed25519"]
    key: Digest
    manifest_sha256: Digest
    signature: Annotated[str, Field(max_length=200)]


def make_signature(manifest: bytes, private_key: bytes, password: bytes | None = None) -> bytes:
    """The signature file for a manifest.

    Args:
        manifest: content of manifest.json.
        private_key: Ed25519, PEM.
        password: of the key, if it has one.
    Raises:
        RuntimeInputError: the key cannot be read, or is of another kind.
        ResourceError: the package cryptography is not installed.
    """
    keys = _library()
    try:
        key = keys.load_pem_private_key(private_key, password)
    except (ValueError, TypeError) as error:
        raise RuntimeInputError(
            f"private key: {_reason(error)}; give an Ed25519 key in PEM"
        ) from error
    _check_kind(key, "private key", "sign")
    digest = hashlib.sha256(manifest).hexdigest()
    data = {
        "format": "optimize-signature",
        "algorithm": "ed25519",
        "key": key_id(key.public_key()),
        "manifest_sha256": digest,
        "signature": base64.b64encode(key.sign(_PURPOSE + digest.encode())).decode(),
    }
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


def check_signature(manifest: bytes, signature: bytes | None, public_key: bytes) -> str:
    """The id of the key that signed a manifest, where it is the given one.

    Args:
        manifest: content of manifest.json.
        signature: content of the signature file, None without one.
        public_key: Ed25519, PEM.
    Raises:
        UnsafeBundle: not signed, or by another key.
        IntegrityError: signed, and changed afterwards.
        CorruptBundle: the signature file is malformed.
        RuntimeInputError: the key cannot be read, or is of another kind.
        ResourceError: the package cryptography is not installed.
    """
    keys = _library()
    try:
        key = keys.load_pem_public_key(public_key)
    except (ValueError, TypeError) as error:
        raise RuntimeInputError(
            f"public key: {_reason(error)}; give an Ed25519 key in PEM"
        ) from error
    _check_kind(key, "public key", "verify")
    if signature is None:
        raise UnsafeBundle(
            "found no signature, expected one by the public key; sign it (`optimize sign`), or "
            "load it without a key"
        )
    entry = parse_signature(signature)
    expected, digest = key_id(key), hashlib.sha256(manifest).hexdigest()
    if entry.key != expected:
        raise UnsafeBundle(
            f"found a signature by key {entry.key[:16]}, expected one by {expected[:16]}; ask "
            "whom you got the bundle from for their public key"
        )
    if entry.manifest_sha256 != digest:
        raise IntegrityError(
            f"{SIGNATURE_FILE}: found a manifest of sha256 {digest}, expected "
            f"{entry.manifest_sha256} as was signed; it was changed afterwards, get it again"
        )
    try:
        raw = base64.b64decode(entry.signature, validate=True)
        key.verify(raw, _PURPOSE + digest.encode())
    except (_invalid(), binascii.Error) as error:
        raise UnsafeBundle(
            f"{SIGNATURE_FILE}: found a signature that key {expected[:16]} did not make; get the "
            "bundle again from a source you trust"
        ) from error
    return expected


def parse_signature(raw: bytes) -> SignatureEntry:
    """Reads a signature file, without checking it.

    Raises:
        CorruptBundle: it is malformed.
    """
    if len(raw) > MAX_SIGNATURE_BYTES:
        raise CorruptBundle(f"{SIGNATURE_FILE}: found more than {MAX_SIGNATURE_BYTES} bytes")
    data = strict_json(raw, SIGNATURE_FILE)
    try:
        return SignatureEntry.model_validate(data)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        where = ".".join(map(str, item["loc"])) or "signature"
        raise CorruptBundle(
            f"{SIGNATURE_FILE}: {where}: {item['msg']}; sign the bundle again"
        ) from error


def key_id(public_key: Any) -> str:
    """SHA-256 of a public key in DER."""
    encoding = _library()
    raw = public_key.public_bytes(encoding.Encoding.DER, encoding.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(raw).hexdigest()


def _check_kind(key: Any, what: str, method: str) -> None:
    found = type(key).__name__
    if "Ed25519" not in found or not hasattr(key, method):
        raise RuntimeInputError(f"{what}: found {found}, expected an Ed25519 key in PEM")


def _library() -> ModuleType:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise ResourceError(
            "signatures: the package cryptography is not installed; pip install 'optimize[sign]'"
        ) from error
    return serialization


def _invalid() -> type[Exception]:
    from cryptography.exceptions import InvalidSignature

    return InvalidSignature


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or ["cannot be read"])[0][:200]

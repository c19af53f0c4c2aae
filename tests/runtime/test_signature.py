"""Signatures: what a key signed loads, and nothing else does where a key is asked for."""

import json
import os
import re

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from optimize.cli import run_command
from optimize.runtime import load, signing
from optimize.runtime.bundle import open_bundle
from optimize.runtime.errors import (
    CorruptBundle,
    IntegrityError,
    ResourceError,
    RuntimeInputError,
    UnsafeBundle,
)
from optimize.runtime.signing import sign_bundle

SIGNATURE = "manifest.sig"


def pair(private=None, password=None):
    """(private, public) in PEM."""
    key = private or ed25519.Ed25519PrivateKey.generate()
    locked = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    return pem, public


OURS, THEIRS = pair(), pair()


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")


def test_a_signed_bundle_loads_with_its_key_and_says_by_whom(bundle):
    key = sign_bundle(bundle, OURS[0])
    assert load(bundle, threads=1).provenance == "signed, not checked"
    assert load(bundle, threads=1, public_key=OURS[1]).provenance == f"signed by {key[:16]}"
    assert open_bundle(bundle, strict=True).unlisted == ()


def test_an_unsigned_bundle_says_so_and_is_refused_where_a_key_is_asked_for(bundle):
    """C4"""
    assert load(bundle, threads=1).provenance == "unsigned"
    with pytest.raises(UnsafeBundle, match="found no signature, expected one by the public key"):
        load(bundle, public_key=OURS[1])


def test_a_bundle_signed_by_another_key_is_refused(bundle):
    """C4"""
    sign_bundle(bundle, THEIRS[0])
    with pytest.raises(UnsafeBundle, match="found a signature by key [0-9a-f]{16}, expected one"):
        load(bundle, public_key=OURS[1])


def test_a_bundle_edited_consistently_after_signing_is_refused(bundle):
    """C4: hashes match, so only the signature shows it."""
    sign_bundle(bundle, OURS[0])

    def raise_limit(package):
        package["additional_metadata"]["optimize"]["signature"]["inputs"][0]["high"] = 9

    edit(bundle / "manifest.json", raise_limit)
    load(bundle, threads=1)
    with pytest.raises(IntegrityError, match="it was changed afterwards"):
        load(bundle, public_key=OURS[1])


def test_a_signature_that_claims_the_key_but_was_not_made_by_it_is_refused(bundle):
    """C4: the manifest's hash in the signature file was replaced as well."""
    sign_bundle(bundle, OURS[0])
    other = json.loads((bundle / SIGNATURE).read_text())
    sign_bundle(bundle, THEIRS[0])
    edit(bundle / SIGNATURE, lambda data: data.update(key=other["key"]))
    with pytest.raises(UnsafeBundle, match="that key [0-9a-f]{16} did not make"):
        load(bundle, public_key=OURS[1])


def test_damage_after_signing_is_still_found_by_the_hashes(bundle):
    sign_bundle(bundle, OURS[0])
    graph = bundle / "graphs" / "step.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    with pytest.raises(IntegrityError, match=r"graphs/step\.onnx"):
        load(bundle, public_key=OURS[1])
    with pytest.raises(IntegrityError, match=r"graphs/step\.onnx"):
        sign_bundle(bundle, OURS[0])


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"{}", b'{"format": "optimize-signature"}', b" " * 70_000],
    ids=["empty", "not-utf8", "list", "no-fields", "few-fields", "too-long"],
)
def test_a_malformed_signature_is_corrupt(bundle, content):
    (bundle / SIGNATURE).write_bytes(content)
    with pytest.raises(CorruptBundle, match=r"manifest\.sig"):
        load(bundle, public_key=OURS[1])


def test_a_signature_that_is_a_link_is_refused(bundle, tmp_path):
    """C7"""
    sign_bundle(bundle, OURS[0])
    (bundle / SIGNATURE).rename(tmp_path / "elsewhere")
    (bundle / SIGNATURE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeBundle, match="found a link"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["manifest.sig", "Manifest.json"])
def test_a_manifest_cannot_list_itself_or_its_signature(bundle, name):
    """C5"""

    def add(package):
        entry = {"size": 1, "sha256": "0" * 64}
        package["additional_metadata"]["optimize"]["files"][name] = entry

    edit(bundle / "manifest.json", add)
    with pytest.raises(UnsafeBundle, match="expected others"):
        open_bundle(bundle)


def test_native_code_of_a_bundle_signed_by_a_trusted_key_may_run(bundle, monkeypatch):
    """C20"""
    from optimize.runtime import bundle as bundle_module

    asked = []
    real = bundle_module.choose

    def choose(manifest, target, trusted):
        asked.append(trusted)
        return real(manifest, target, trusted)

    monkeypatch.setattr(bundle_module, "choose", choose)
    sign_bundle(bundle, OURS[0])
    open_bundle(bundle)
    open_bundle(bundle, public_key=OURS[1])
    assert asked[-2:] == [False, True]


def test_keys_of_other_kinds_are_refused_by_name(bundle):
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private, public = pair(other)
    with pytest.raises(RuntimeInputError, match="RSAPrivateKey, expected an Ed25519 key"):
        sign_bundle(bundle, private)
    with pytest.raises(RuntimeInputError, match="RSAPublicKey, expected an Ed25519 key"):
        load(bundle, public_key=public)
    with pytest.raises(RuntimeInputError, match="give an Ed25519 key in PEM"):
        load(bundle, public_key=b"nonsense")
    locked, _ = pair(password=b"secret")
    with pytest.raises(RuntimeInputError, match="private key"):
        sign_bundle(bundle, locked)
    sign_bundle(bundle, locked, b"secret")


def test_a_failure_while_signing_leaves_the_old_signature(bundle, monkeypatch):
    """E1"""
    sign_bundle(bundle, OURS[0])
    before = (bundle / SIGNATURE).read_bytes()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(signing.os, name, fail)
            with pytest.raises(ResourceError, match="No space left on device"):
                sign_bundle(bundle, THEIRS[0])
        assert (bundle / SIGNATURE).read_bytes() == before
        assert not [item for item in os.listdir(bundle) if item.startswith(".")]


def test_what_a_killed_signer_left_is_removed_by_the_next(bundle):
    """E2"""
    (bundle / ".manifest.sig.0123").write_bytes(b"half")
    with pytest.warns(UserWarning, match="does not name"):
        sign_bundle(bundle, OURS[0])
    open_bundle(bundle, strict=True)


def test_the_command_signs_and_checks(bundle, tmp_path, capsys):
    private, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    private.write_bytes(OURS[0])
    public.write_bytes(OURS[1])
    assert run_command(["sign", str(bundle), "--public-key", str(public)]) == 5
    assert run_command(["sign", str(bundle), "--key", str(private)]) == 0
    assert run_command(["sign", str(bundle), "--public-key", str(public)]) == 0
    assert re.search(r"signed by\s+[0-9a-f]{16}", capsys.readouterr().out)
    assert run_command(["sign", str(bundle)]) == 2
    assert run_command(["inspect", str(bundle)]) == 0
    assert "signed, not checked" in capsys.readouterr().out

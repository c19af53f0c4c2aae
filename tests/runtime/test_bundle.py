"""Reading a bundle: damage, hostile paths and special files are refused before any use."""

import hashlib
import json
import os
import random
import socket
import warnings

import pytest

from optimize.runtime import bundle as bundle_module
from optimize.runtime import load
from optimize.runtime.bundle import open_bundle
from optimize.runtime.errors import (
    BundleError,
    CorruptBundle,
    IntegrityError,
    OptimizeError,
    UnsafeBundle,
    VersionError,
)


def rewrite_manifest(path, change):
    """Edits the manifest as a consistent writer would."""
    package = json.loads((path / "manifest.json").read_text())
    change(package["additional_metadata"]["optimize"])
    (path / "manifest.json").write_text(json.dumps(package))


def replace_file(path, name, content):
    """Replaces a file and its entry in the manifest, so that only its content is wrong."""
    (path / name).write_bytes(content)
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite_manifest(path, lambda manifest: manifest["files"].update({name: entry}))


def test_what_is_not_a_bundle_is_told_from_an_unfinished_export(tmp_path, bundle):
    """C1"""
    with pytest.raises(BundleError, match="found nothing, expected a bundle folder"):
        open_bundle(tmp_path / "missing")
    with pytest.raises(BundleError, match="found a file, expected a bundle folder"):
        open_bundle(bundle / "manifest.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="not a bundle"):
        open_bundle(tmp_path / "empty")
    (tmp_path / ".bundle.0123.staging").mkdir()
    with pytest.raises(BundleError, match="unfinished export"):
        open_bundle(tmp_path / ".bundle.0123.staging")


def test_truncation_or_a_flipped_bit_anywhere_is_found(bundle):
    """C2: every file, cut and flipped at many places; nothing but our errors comes out."""
    random.seed(0)
    for file in sorted(f for f in bundle.rglob("*") if f.is_file()):
        whole = file.read_bytes()
        places = {0, 1, len(whole) // 2, len(whole) - 1, *random.sample(range(len(whole)), 40)}
        is_manifest = file.name == "manifest.json"
        for place in sorted(places):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << random.randrange(8)
            for damaged in (whole[:place], bytes(flipped), whole[:place] + whole[place + 1 :]):
                file.write_bytes(damaged)
                try:
                    opened = open_bundle(bundle)
                except OptimizeError as error:
                    assert is_manifest or isinstance(error, IntegrityError)
                    assert is_manifest or str(file.relative_to(bundle)) in str(error)
                else:
                    # The manifest has no hash: what it still says must be what the files say.
                    assert is_manifest
                    assert all(len(model) > 0 for model in opened.models.values())
        file.write_bytes(whole)
    open_bundle(bundle, strict=True)


def test_an_integrity_error_shows_found_and_expected(bundle):
    """C2"""
    name = "graphs/step.onnx"
    raw = (bundle / name).read_bytes()
    (bundle / name).write_bytes(raw[:-1])
    with pytest.raises(IntegrityError, match=f"found {len(raw) - 1} bytes, expected {len(raw)}"):
        open_bundle(bundle)
    (bundle / name).write_bytes(raw[:-1] + b"\0" if raw[-1] else raw[:-1] + b"\1")
    with pytest.raises(IntegrityError, match="found sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
        open_bundle(bundle)


def test_a_missing_file_is_an_error_and_an_extra_one_a_warning(bundle):
    """C5"""
    (bundle / "notes.txt").write_text("hello")
    with pytest.warns(UserWarning, match="does not name: notes.txt"):
        assert open_bundle(bundle).unlisted == ("notes.txt",)
    with pytest.raises(IntegrityError, match="remove them"):
        open_bundle(bundle, strict=True)
    (bundle / "notes.txt").unlink()
    (bundle / "tables.safetensors").unlink()
    with pytest.raises(IntegrityError, match="tables.safetensors: the file is missing"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "name",
    [
        "../outside", "a/../../outside", "/etc/hostname", "C:/x", "C:x", "a\\b", "a\0b", "~/x",
        "a./b", "a.", "a ", "x" * 4096, "a//b", "./a", "", "cafe\u0301", "a\nb", "con?.txt",
        "\ud800",
    ],
)  # fmt: skip
def test_a_path_that_leaves_the_bundle_is_refused_before_any_open(bundle, monkeypatch, name):
    """C6"""

    def add(manifest):
        manifest["files"][name] = {"size": 1, "sha256": "0" * 64}

    rewrite_manifest(bundle, add)
    opened = []
    real = bundle_module._open_inside
    monkeypatch.setattr(
        bundle_module, "_open_inside", lambda root, n: opened.append(n) or real(root, n)
    )
    with pytest.raises((UnsafeBundle, CorruptBundle)):
        open_bundle(bundle)
    assert opened == ["manifest.json", "manifest.sig"]


def test_names_that_differ_in_case_only_are_refused(bundle):
    """C5"""

    def add(manifest):
        manifest["files"]["Tables.safetensors"] = manifest["files"]["tables.safetensors"]

    rewrite_manifest(bundle, add)
    with pytest.raises(UnsafeBundle, match="differ in case only"):
        open_bundle(bundle)


def _link_out(bundle, tmp_path):
    target = tmp_path / "outside"
    (bundle / "graphs" / "step.onnx").rename(target)
    (bundle / "graphs" / "step.onnx").symlink_to(target)


def _link_parent(bundle, tmp_path):
    (bundle / "graphs").rename(tmp_path / "elsewhere")
    (bundle / "graphs").symlink_to(tmp_path / "elsewhere")


def _link_dangling(bundle, tmp_path):
    (bundle / "graphs" / "step.onnx").unlink()
    (bundle / "graphs" / "step.onnx").symlink_to(tmp_path / "nothing")


def _link_loop(bundle, tmp_path):
    (bundle / "graphs" / "step.onnx").unlink()
    (bundle / "graphs" / "step.onnx").symlink_to(bundle / "graphs" / "step.onnx")


def _manifest_link(bundle, tmp_path):
    (bundle / "manifest.json").rename(tmp_path / "m")
    (bundle / "manifest.json").symlink_to(tmp_path / "m")


def _fifo(bundle, tmp_path):
    (bundle / "tables.safetensors").unlink()
    os.mkfifo(bundle / "tables.safetensors")


def _folder(bundle, tmp_path):
    (bundle / "tables.safetensors").unlink()
    (bundle / "tables.safetensors").mkdir()


def _device(bundle, tmp_path):
    (bundle / "tables.safetensors").unlink()
    os.mknod(bundle / "tables.safetensors", 0o20666, os.makedev(1, 3))


def _socket(bundle, tmp_path):
    (bundle / "tables.safetensors").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(bundle / "tables.safetensors"))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "prepare",
    [_link_out, _link_parent, _link_dangling, _link_loop, _manifest_link, _fifo, _folder, _device,
     _socket],
    ids=lambda function: function.__name__.strip("_"),
)  # fmt: skip
def test_links_and_special_files_are_refused_without_waiting(bundle, tmp_path, prepare):
    """C7, C9"""
    prepare(bundle, tmp_path)
    # A linked folder is also a file that the manifest does not name.
    with warnings.catch_warnings(), pytest.raises(UnsafeBundle):
        warnings.simplefilter("ignore")
        open_bundle(bundle)


def test_hard_links_load(bundle, tmp_path):
    """C8"""
    for name in ("graphs/step.onnx", "graphs/weights.safetensors", "tables.safetensors"):
        os.link(bundle / name, tmp_path / name.replace("/", "_"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(bundle, threads=1)(seed=0, labels=[1])["image"].shape == (1, 1, 8, 8)


def test_files_swapped_after_the_check_have_no_effect(bundle, monkeypatch):
    """C10: all files are replaced the moment the last one was hashed; the result is the old one."""
    expected = load(bundle, threads=1)(seed=0, labels=[1])["image"]
    real = bundle_module.read_tensors
    swapped = []

    def swap(data, file):
        for name in ("graphs/step.onnx", "graphs/weights.safetensors", "tables.safetensors"):
            size = (bundle / name).stat().st_size
            with open(bundle / name, "r+b") as content:
                content.write(b"\xff" * size)
            swapped.append(name)
        return real(data, file)

    monkeypatch.setattr(bundle_module, "read_tensors", swap)
    session = load(bundle, threads=1)
    assert swapped
    assert (session(seed=0, labels=[1])["image"] == expected).all()


def test_the_session_outlives_its_folder(bundle):
    """C23"""
    session = load(bundle, threads=1)
    expected = session(seed=0, labels=[1])["image"]
    before = sorted(str(f) for f in bundle.rglob("*"))
    for file in sorted(bundle.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    assert before, "loading must not have written into the bundle"
    assert (session(seed=0, labels=[1])["image"] == expected).all()


def test_an_unknown_major_version_is_refused_with_both_versions(bundle):
    """C16"""
    rewrite_manifest(bundle, lambda manifest: manifest.update(format_version="2.0"))
    with pytest.raises(
        VersionError, match="found format version 2.0, expected 1.x; install a newer"
    ):
        open_bundle(bundle)


def test_a_newer_minor_version_loads_and_its_new_fields_are_ignored(bundle):
    """C16"""

    def extend(manifest):
        manifest.update(format_version="1.7", novelty={"a": [1, 2]})
        manifest["loop"]["novelty"] = 1
        manifest["loop"]["slots"][0]["novelty"] = True
        manifest["loop"]["body"][0]["novelty"] = "x"
        manifest["signature"]["inputs"][0]["novelty"] = None

    rewrite_manifest(bundle, extend)
    assert load(bundle, threads=1)(seed=0, labels=[1])["image"].shape == (1, 1, 8, 8)
    rewrite_manifest(bundle, lambda manifest: manifest.update(format_version="1.0"))
    with pytest.raises(CorruptBundle, match="novelty"):
        open_bundle(bundle)


def test_a_missing_capability_is_named(bundle):
    """C17"""
    features = ["paged_cache"]
    rewrite_manifest(bundle, lambda manifest: manifest.update(required_features=features))
    with pytest.raises(VersionError, match="needs paged_cache"):
        open_bundle(bundle)


def test_native_code_that_no_engine_names_is_refused(bundle):
    """C20: what runs it, and needs trust for that, is in test_targets.py."""
    (bundle / "engines").mkdir()
    replace_file(bundle, "engines/kernel.cubin", b"\x7fELF")
    with pytest.raises(CorruptBundle, match="engines/kernel.cubin is native code that no engine"):
        load(bundle)

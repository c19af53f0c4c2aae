"""The manifest: strict JSON in, one reading only."""

import contextlib
import json

import pytest

from optimize.runtime.errors import CorruptBundle, OptimizeError
from optimize.runtime.manifest import dump_manifest, parse_manifest


@pytest.fixture(scope="module")
def raw(tiny_bundle):
    return (tiny_bundle / "manifest.json").read_bytes()


def test_a_manifest_is_read_back_to_the_same_bytes(raw):
    assert dump_manifest(parse_manifest(raw)) == raw


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "strict JSON"),
        (lambda raw: b"\xff" + raw, "strict JSON"),
        (lambda raw: raw.replace(b'"size": ', b'"size": NaN, "x": ', 1), "the number NaN"),
        (lambda raw: raw.replace(b'"size": ', b'"size": -Infinity, "x": ', 1), "Infinity"),
        (lambda raw: raw.replace(b'"size": ', b'"size": ' + b"9" * 5000 + b', "x": ', 1), "strict"),
        (lambda raw: b"[" * 100_000 + b"]" * 100_000, "nested too deeply|strict JSON"),
        (lambda raw: raw.replace(b'"targets"', b'"targets": ["x"], "targets"', 1), "twice"),
        (lambda raw: b"", "strict JSON"),
        (lambda raw: b"null", "not a bundle"),
        (lambda raw: b"{}", "not a bundle"),
        (lambda raw: raw.replace(b'"size": ', b'"size": "1", "size_": ', 1), "size"),
    ],
    ids=["cut", "not-utf8", "nan", "infinity", "5000-digits", "deep", "duplicate", "empty", "null",
         "no-format", "text-for-number"],
)  # fmt: skip
def test_what_is_not_strict_json_or_no_manifest_is_corrupt(raw, damage, message):
    """C3"""
    with pytest.raises(CorruptBundle, match=message):
        parse_manifest(damage(raw))


def test_more_than_four_mebibytes_are_refused(bundle):
    """C3"""
    from optimize.runtime.bundle import open_bundle

    (bundle / "manifest.json").write_bytes(b" " * (4 * 2**20 + 1))
    with pytest.raises(CorruptBundle, match="more than 4194304 bytes"):
        open_bundle(bundle)


def _loop(manifest):
    return manifest["loop"]["body"][0]["bodies"]["step"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["graphs"].clear(), "calls graph step"),
        (lambda m: m["files"].pop("graphs/weights.safetensors"), "lacks graphs/weights"),
        (lambda m: m["graphs"]["step"].update(file="graphs/other.onnx"), "lacks graphs/other"),
        (lambda m: _loop(m)["inputs"]["latent"].update(name="other"), "unknown state other"),
        (lambda m: _loop(m)["inputs"]["labels"].update(name="other"), "unknown request other"),
        (lambda m: _loop(m)["inputs"].pop("latent"), "other names than it has"),
        (lambda m: _loop(m)["outputs"]["latent_next"].update(state="other"), "unknown slot other"),
        (lambda m: _loop(m)["outputs"]["latent_next"].update(append="other"), "exactly one"),
        (lambda m: m["loop"]["results"].update(image="other"), "unknown slots"),
        (lambda m: m["loop"]["body"][0].update(until="other"), "waits for unknown slot"),
        (lambda m: m["loop"]["body"][0].update(steps=["other"]), "unknown bodies"),
        (lambda m: m["loop"]["slots"][0]["initial"].update(source="state"), "another slot"),
        (lambda m: m["loop"]["slots"][0].update(shape=[-1]), "shape"),
        (lambda m: m["loop"]["slots"][0].update(dtype="object"), "dtype"),
        (lambda m: _loop(m)["inputs"]["latent"].update(steps=2), "which it does not have"),
        (lambda m: _loop(m)["inputs"]["timestep"].update(steps=2), "lacks .'step_ranges'"),
        (lambda m: m["loop"]["body"][0].update(stride=2), "lacks .'step_ranges'"),
        (lambda m: m.update(extra=1), "extra"),
    ],
)
def test_a_loop_that_does_not_fit_its_graphs_is_corrupt(raw, change, message):
    package = json.loads(raw)
    change(package["additional_metadata"]["optimize"])
    with pytest.raises(CorruptBundle, match=message):
        parse_manifest(json.dumps(package).encode())


def test_components_that_name_other_files_than_the_bundle_are_corrupt(raw):
    """Two readers of one manifest must not see two bundles."""
    package = json.loads(raw)
    variant = package["components"]["step"]["variants"]["onnx"]
    variant["executor_info"]["ort"]["model_file"] = "other.onnx"
    with pytest.raises(CorruptBundle, match="components that are not this bundle's graphs"):
        parse_manifest(json.dumps(package).encode())


def test_mutated_manifests_raise_our_errors_only(raw):
    """C3: every byte replaced, deleted or doubled at every 3rd place."""
    for place in range(0, len(raw), 3):
        for damaged in (
            raw[:place] + b"\x00" + raw[place + 1 :],
            raw[:place] + raw[place + 1 :],
            raw[:place] + raw[place : place + 1] + raw[place:],
        ):
            with contextlib.suppress(OptimizeError):
                parse_manifest(damaged)

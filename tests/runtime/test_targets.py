"""Which target a session runs: the choice, its reasons, and what is refused."""

import pytest

from optimize.runtime import load, machine
from optimize.runtime.errors import DeviceError, UnsafeBundle, VersionError
from optimize.runtime.manifest import EngineEntry, EngineGraph, Manifest, parse_manifest
from optimize.runtime.targets import choose, why_not

RTX = EngineEntry(
    device="cuda",
    precision="float16",
    built_with={"tensorrt_rtx": "1.7.1.116"},
    needs={"platform": "linux-x86_64", "capabilities": "SM89 SM120"},
    graphs={"step": EngineGraph(file="engines/tensorrt-rtx/step.engine", inputs=(), outputs=())},
)
AOTI = EngineEntry(
    device="cpu",
    precision="float32",
    built_with={"torch": "2.13.0"},
    needs={"platform": "linux-x86_64", "features": "avx2 fma"},
    graphs={"step": EngineGraph(file="engines/aoti/step.pt2", inputs=(), outputs=())},
)


@pytest.fixture
def manifest(tiny_bundle) -> Manifest:
    """A manifest with two engines whose files nobody opens here."""
    plain = parse_manifest((tiny_bundle / "manifest.json").read_bytes())
    engines = {"tensorrt-rtx": RTX, "aoti": AOTI}
    return plain.model_copy(
        update={"engines": engines, "targets": ("onnx", "tensorrt-rtx", "aoti")}
    )


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """A machine with an RTX 40 and everything the engines were built with."""
    found = {"tensorrt_rtx": "1.7.1.116", "torch": "2.13.0", "tensorrt": None}
    monkeypatch.setattr(machine, "version_of", found.get)
    monkeypatch.setattr(machine, "platform_name", lambda: "linux-x86_64")
    monkeypatch.setattr(machine, "processor_features", lambda: frozenset({"avx2", "fma", "avx"}))
    monkeypatch.setattr(machine, "gpu_capability", lambda: "SM89")
    return found


def test_the_engine_of_this_gpu_is_chosen_where_native_code_is_trusted(manifest):
    choice = choose(manifest, None, trusted=True)
    assert choice.target == "tensorrt-rtx" and "SM89, which is here" in choice.reason


def test_without_trust_onnx_is_chosen_and_says_so(manifest):
    choice = choose(manifest, None, trusted=False)
    assert choice.target == "onnx" and "not trusted" in choice.reason


def test_without_a_gpu_onnx_is_chosen_and_says_what_there_is(manifest, monkeypatch):
    monkeypatch.setattr(machine, "gpu_capability", lambda: None)
    choice = choose(manifest, None, trusted=True)
    assert choice.target == "onnx"
    assert choice.reason == (
        "tensorrt-rtx: needs a GPU (SM89, SM120), found none; "
        "aoti is for the CPU: pass target='aoti' to run it"
    )


def test_what_was_asked_for_is_never_replaced(manifest, monkeypatch):
    assert choose(manifest, "aoti", trusted=True).target == "aoti"
    assert choose(manifest, "onnx", trusted=False).target == "onnx"
    with pytest.raises(UnsafeBundle, match=r"native code \(engines/aoti/step.pt2\); pass trust="):
        choose(manifest, "aoti", trusted=False)
    with pytest.raises(VersionError, match="found 'tensorrt', expected one of onnx, tensorrt-rtx"):
        choose(manifest, "tensorrt", trusted=True)
    monkeypatch.setattr(machine, "gpu_capability", lambda: "SM90")
    with pytest.raises(DeviceError, match="built for SM89, SM120, found SM90; export again"):
        choose(manifest, "tensorrt-rtx", trusted=True)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("version_of", lambda library: "2.12.1", "built with torch 2.13.0, found 2.12.1 here"),
        ("version_of", lambda library: None, "found none here"),
        ("platform_name", lambda: "linux-aarch64", "built for linux-x86_64, found linux-aarch64"),
        ("processor_features", lambda: frozenset({"avx2"}), "processor with fma, which this one"),
    ],
    ids=["version", "absent", "platform", "processor"],
)
def test_an_engine_of_another_machine_is_refused_by_name(monkeypatch, name, value, message):
    """C18"""
    monkeypatch.setattr(machine, name, value)
    assert message in str(why_not("aoti", AOTI))


def test_a_bundle_without_engines_says_so(tiny_bundle):
    with load(tiny_bundle) as session:
        assert (session.target, session.reason) == ("onnx", "the bundle has no other target")


def test_providers_belong_to_onnx(tiny_bundle):
    with pytest.raises(ValueError, match="providers: found some with target 'aoti'"):
        load(tiny_bundle, target="aoti", providers=["CPUExecutionProvider"])

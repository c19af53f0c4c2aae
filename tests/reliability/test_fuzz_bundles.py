"""A sample of the fuzzing of bundles; benchmarks/fuzz_bundles.py does more of the same."""

import os
import signal

import pytest

from tests.loading import benchmark

REQUEST = {"seed": 0, "labels": [1]}


@pytest.fixture(scope="module")
def fuzz():
    """The module benchmarks/fuzz_bundles.py."""
    with benchmark("fuzz_bundles") as module:
        yield module


@pytest.mark.parametrize(
    ("name", "count"), [("manifests", 1500), ("tensors", 1500), ("files", 600), ("graphs", 150)]
)
def test_damaged_bundles_are_refused_or_harmless(fuzz, tiny_bundle, tmp_path, name, count):
    """C2, C3, C11, C12, C14"""
    work = tmp_path / "work"
    work.mkdir()
    kind = fuzz.kinds_of(tiny_bundle, REQUEST, work, seed=1)[name]
    result = fuzz.run_kind(name, kind, count, tmp_path / "found")
    assert result.failures == []
    assert result.failed == 0
    assert result.inputs == count
    assert result.refused > count // 2
    assert (result.accepted == 0) == (name == "files"), "damage that does no harm is accepted"


@pytest.mark.slow
def test_damaged_graphs_of_one_operator_are_refused_or_harmless(fuzz, tmp_path):
    """C12, C13: a quarter of them is accepted, and computed while it is loaded."""
    result = fuzz.run_kind("operators", fuzz.operators_kind(seed=1), 1500, tmp_path / "found")
    assert result.failures == []
    assert result.failed == 0
    assert result.inputs == 1500
    assert result.accepted > 100


def test_harm_is_noticed_counted_and_saved(fuzz, tmp_path, monkeypatch):
    """The harness itself: what dies, hangs, raises or grows is found, and reading goes on."""
    monkeypatch.setattr(fuzz, "HANG_SECONDS", 1.0)
    monkeypatch.setattr(fuzz, "GROWTH_BYTES", 64 * 2**20)

    def feed(content, _):
        if content == b"1":
            os.kill(os.getpid(), signal.SIGSEGV)
        if content == b"3":
            signal.pause()
        if content == b"5":
            raise KeyError("x")
        if content == b"7":
            bytearray(512 * 2**20)
        if content == b"8":
            bytearray(8 * 2**30)

    kind = fuzz.Kind(lambda index: (str(index).encode(), "number"), feed, lambda: None, ".txt")
    result = fuzz.run_kind("numbers", kind, 10, tmp_path)
    assert (result.inputs, result.accepted, result.refused) == (10, 6, 0)
    assert (result.crashes, result.hangs, result.untyped, result.growths) == (1, 1, 2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"numbers-{number}.txt" for number in (1, 3, 5, 7, 8)
    ]
    assert "signal 11" in result.failures[0]
    assert "MemoryError" in result.failures[-1], "the limit of the address space holds"

"""Safetensors files: what the library itself writes is read, what could hide something is not."""

import json
import time

import numpy as np
import pytest
from safetensors.numpy import save

from optimize.runtime.errors import BundleError, CorruptBundle, OptimizeError, UnsafeBundle
from optimize.runtime.tensors import read_tensors, tensors_header


def packed(entries, data=b"", pad=0):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def read(raw):
    return read_tensors(np.frombuffer(raw, np.uint8), "w.safetensors")


def entry(begin, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape,
            "data_offsets": [begin, end]}  # fmt: skip


def test_reads_what_the_library_writes():
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b.weight": np.arange(4),
        "flag": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float16),
        "scalar": np.array(2.0),
    }
    found = read(save(arrays))
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == str(array.dtype)
        np.testing.assert_array_equal(found[name].array, array)


def test_views_share_the_files_memory():
    raw = np.frombuffer(save({"a": np.ones(1000, np.float32)}), np.uint8)
    assert np.shares_memory(read_tensors(raw, "f")["a"].array, raw)


def test_a_header_written_here_is_read_by_the_library():
    from safetensors.numpy import load

    header = tensors_header([("a", "float64", (2,)), ("b", "float32", (3, 1))])
    assert len(header) % 64 == 0
    found = load(header + np.arange(2.0).tobytes() + np.ones(3, np.float32).tobytes())
    assert found["a"].tolist() == [0, 1]
    assert found["b"].shape == (3, 1)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"\0" * 7, CorruptBundle),
        ((2**63).to_bytes(8, "little") + b"{}", UnsafeBundle),
        ((9 * 2**20).to_bytes(8, "little") + b" " * (9 * 2**20), UnsafeBundle),
        ((50).to_bytes(8, "little") + b"{}", CorruptBundle),
        (packed({"a": entry(0, 8)}, b"\0" * 4), CorruptBundle),
        (packed({"a": entry(0, 4)}, b"\0" * 5), CorruptBundle),
        (packed({"a": entry(0, 4), "b": entry(8, 12)}, b"\0" * 12), CorruptBundle),
        (packed({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12), CorruptBundle),
        (packed({"a": entry(4, 0)}, b"\0" * 4), CorruptBundle),
        (packed({"a": entry(0, 4, [2**62, 2**62, 0, 1])}, b"\0" * 4), CorruptBundle),
        (packed({"a": entry(0, 4, [-1])}, b"\0" * 4), CorruptBundle),
        (packed({"a": entry(0, 4, [True])}, b"\0" * 4), CorruptBundle),
        (packed({"a": entry(0, 4, [1] * 40)}, b"\0" * 4), CorruptBundle),
        (packed({"a": entry(0, 4, dtype="F8")}, b"\0" * 4), CorruptBundle),
        (packed({"a": 3}), CorruptBundle),
        (packed(b"[]"), CorruptBundle),
        (packed(b'{"a": {}, "a": {}}'), CorruptBundle),
        (packed(b"[" * 100_000), CorruptBundle),
        (packed(b"\xff\xfe"), CorruptBundle),
        (packed({"../../x": entry(0, 4)}, b"\0" * 4), UnsafeBundle),
        (packed({"/x": entry(0, 4)}, b"\0" * 4), UnsafeBundle),
        (packed({"a\0b": entry(0, 4)}, b"\0" * 4), UnsafeBundle),
        (packed({"x" * 600: entry(0, 4)}, b"\0" * 4), UnsafeBundle),
        (packed({f"t{n}": entry(0, 0) for n in range(20_001)}), UnsafeBundle),
    ],
    ids=["short", "2^63", "9-MiB-header", "header-past-end", "data-past-end", "trailing", "hole",
         "overlap", "reversed", "overflow", "negative", "boolean", "rank-40", "dtype", "no-entry",
         "list", "duplicate", "deep", "not-utf8", "traversal", "absolute", "nul", "long-name",
         "20001-tensors"],
)  # fmt: skip
def test_malformed_or_hostile_files_are_refused_quickly(raw, kind):
    """C11"""
    start = time.perf_counter()
    with pytest.raises(kind):
        read(raw)
    assert time.perf_counter() - start < 2.0


def test_mutated_headers_raise_our_errors_only():
    raw = save({"a": np.ones((2, 3), np.float32), "b": np.arange(3)})
    for place in range(len(raw) - 48):
        for damaged in (
            raw[:place],
            raw[:place] + b"9" + raw[place + 1 :],
            raw[:place] + raw[place + 1 :],
        ):
            try:
                read(damaged)
            except OptimizeError as error:
                assert isinstance(error, BundleError)

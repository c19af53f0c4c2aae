"""Stored examples and measured speeds."""

import time

import numpy as np
import pytest

from optimize.measure.receipt import (
    dump_example,
    fingerprint,
    measure_speed,
    measure_speedup,
    read_example,
    versions,
)
from optimize.runtime.errors import CorruptBundle
from optimize.runtime.tensors import tensors_header


def read(content: bytes):
    return read_example(np.frombuffer(content, np.uint8))


def test_an_example_is_read_back_as_it_was():
    request = {"labels": np.array([1, 2]), "scale": np.float32(2.5), "seed": 7}
    results = {"latent": np.ones((2, 3), np.float32), "flags": np.array([True]), "text": "left out"}
    content = dump_example(request, results)
    assert content == dump_example(request, results)
    stored = read(content)
    fields = stored.fields()
    assert fields["seed"] == 7 and isinstance(fields["seed"], int)
    assert fields["labels"].tolist() == [1, 2] and fields["scale"].shape == ()
    assert set(stored.results) == {"latent", "flags"}
    np.testing.assert_array_equal(stored.results["latent"], results["latent"])


def test_what_is_no_example_is_refused():
    with pytest.raises(CorruptBundle, match="found tensor 'weight', expected request and result"):
        read(tensors_header([("weight", "float32", (1,))]) + bytes(4))
    with pytest.raises(ValueError, match="found an array of dtype object"):
        dump_example({"x": np.array([object()])}, {})


def test_a_speed_is_relative_to_fixed_work():
    speed = measure_speed(lambda: time.sleep(0.02), repeats=3)
    assert 0.02 <= speed.seconds < 2 and speed.work_seconds > 0
    assert speed.ratio > 0.05 and speed.machine == fingerprint()


def test_a_speed_has_an_interval():
    speed = measure_speed(lambda: time.sleep(0.002), repeats=4)
    low, high = speed.interval
    assert 0 < low <= speed.ratio <= high < float("inf")


def test_a_speedup_is_that_of_requests_run_in_turns():
    found = measure_speedup(lambda: time.sleep(0.004), lambda: time.sleep(0.02))
    low, high = found["interval"]
    assert low <= found["value"] <= high and set(found) == {"value", "interval"}
    assert 1.5 < found["value"] < 6


def test_a_speedup_that_takes_too_long_is_of_one_round_and_says_so():
    calls = []
    found = measure_speedup(lambda: calls.append(time.sleep(0.01)), lambda: None, seconds=0.015)
    assert len(calls) == 1
    assert found["interval"] is None and found["note"].startswith("no interval: one round takes")


def test_versions_are_those_of_the_libraries_that_count():
    found = versions()
    assert set(found) == {"numpy", "onnx", "onnxruntime", "python", "torch"}
    assert found["numpy"] == np.__version__

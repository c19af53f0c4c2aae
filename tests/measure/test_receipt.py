"""Stored examples and measured speeds."""

import time

import numpy as np
import pytest

from optimize.measure.receipt import dump_example, fingerprint, measure_speed, read_example
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

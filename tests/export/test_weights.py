"""The weights file: read back by safetensors itself, each storage once, aligned."""

import torch
from safetensors.torch import load

from optimize.export.weights import layout_weights


def _file(weights, used=None):
    layout = layout_weights(weights, weights if used is None else used)
    return layout, b"".join(layout.chunks())


def test_safetensors_reads_every_dtype_back():
    torch.manual_seed(0)
    weights = {
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(7).bfloat16(),
        "single": torch.randn(4, 4, 3),
        "double": torch.randn(2).double(),
        "long": torch.arange(5),
        "flag": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
        "strided": torch.randn(6, 4).t(),
    }
    _, raw = _file(weights)
    read = load(raw)
    assert set(read) == set(weights)
    for name, tensor in weights.items():
        assert torch.equal(read[name], tensor), name


def test_tied_weights_are_stored_once():
    """A7"""
    weight = torch.randn(8, 8)
    weights = {"head": weight, "embedding": weight, "view": weight.t(), "other": weight.clone()}
    layout, raw = _file(weights)
    assert layout.places["head"] == layout.places["embedding"]
    assert len({place.offset for place in layout.places.values()}) == 3
    assert len(raw) == len(layout.header) + 3 * 256


def test_large_tensors_start_on_64_bytes_and_numbers_on_their_own_size():
    weights = {f"w{size}": torch.randn(size) for size in (1, 16, 33, 64, 128)}
    weights["b1"] = torch.tensor([True])
    weights["d3"] = torch.randn(3).double()
    layout, _ = _file(weights)
    for name, place in layout.places.items():
        assert place.offset % weights[name].element_size() == 0, name
        if place.length % 64 == 0:
            assert place.offset % 64 == 0, name


def test_unused_weights_are_left_out_and_the_bytes_are_deterministic():
    torch.manual_seed(0)
    weights = {name: torch.randn(4) for name in ("b", "a", "c")}
    _, first = _file(weights, ["b", "a"])
    _, second = _file(dict(reversed(weights.items())), ["a", "b", "a"])
    assert first == second
    assert set(load(first)) == {"a", "b"}


def test_complex_weights_are_stored_as_pairs():
    weight = torch.randn(3, 4, dtype=torch.complex64)
    _, raw = _file({"rotary": weight})
    assert torch.equal(load(raw)["rotary"], torch.view_as_real(weight))

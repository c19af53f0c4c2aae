"""Decoders as prefill and decode graphs with caches: equal to decoding without a cache."""

import numpy as np
import pytest
import torch

from optimize.capture.from_decoder import capture_decoder
from optimize.ir.decode import DecodeLoop, Sampling
from optimize.ir.errors import InputModelError
from optimize.ir.spec import check_program
from optimize.recipes.zoo.tiny_decoder import (
    VOCABULARY,
    TinyDecoder,
    plain_decoding,
    tiny_model,
    tiny_request,
)
from optimize.runtime import load
from optimize.runtime.errors import RuntimeInputError

LOOP = DecodeLoop(max_prompt=12, max_new_tokens=6)
FORMS = {
    "text": {},
    "one-head-per-key": {"groups": 4},
    "learned-positions": {"rotary": False},
    "image": {"grid": (3, 4)},
    "image-first": {"grid": (3, 4), "image_offset": 0},
    "prefix": {"grid": (3, 4), "attention": "prefix"},
    "shifted-positions": {"grid": (3, 4), "shift": -8},
}


@pytest.mark.parametrize("form", FORMS)
def test_tokens_and_logits_equal_decoding_without_a_cache(form):
    model = tiny_model(**FORMS[form])
    program = capture_decoder(model, LOOP)
    check_program(program)
    request = tiny_request(model)
    found = program(**request)
    tokens, logits = plain_decoding(model, request, 6)
    assert torch.equal(found["tokens"], tokens)
    torch.testing.assert_close(found["logits"], logits[:, 0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", ["text", "prefix"])
def test_a_bundle_gives_the_same_tokens(form, tmp_path):
    model = tiny_model(dtype=torch.float32, **FORMS[form])
    program = capture_decoder(model, LOOP)
    program.export(tmp_path / "bundle")
    request = {name: item.numpy() for name, item in tiny_request(model, (12, 3, 7)).items()}
    found, expected = load(tmp_path / "bundle", threads=1)(**request), program(**request)
    np.testing.assert_array_equal(found["tokens"], expected["tokens"].numpy())
    np.testing.assert_allclose(found["logits"], expected["logits"].numpy(), rtol=1e-4, atol=1e-4)


def test_caches_are_updated_in_place(tmp_path):
    program = capture_decoder(tiny_model(dtype=torch.float32), LOOP)
    assert {slot.name for slot in program.loop.slots if slot.in_place} == {
        f"{kind}_{layer}" for kind in ("key", "value") for layer in range(4)
    }


def test_only_the_last_row_goes_through_the_output_layer():
    program = capture_decoder(tiny_model(), LOOP)
    graph = program.graphs["prefill"]
    (head,) = [
        node
        for node in graph.graph.nodes
        if "aten.linear" in str(node.target) and node.meta["val"].shape[-1] == VOCABULARY
    ]
    assert head.meta["val"].shape[1] == 1


def test_padding_changes_nothing():
    model = tiny_model(grid=(3, 4))
    program = capture_decoder(model, LOOP)
    request = tiny_request(model, (6, 6))
    padded = dict(request)
    padded["input_ids"] = torch.cat([request["input_ids"], torch.full((2, 5), 7)], 1)
    found, expected = program(**padded), program(**request)
    assert torch.equal(found["tokens"], expected["tokens"])
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=1e-12, atol=1e-12)


def test_length_zero_means_no_padding():
    model = tiny_model()
    program = capture_decoder(model, LOOP)
    request = tiny_request(model, (6, 6))
    whole = program(**request)["tokens"]
    del request["lengths"]
    assert torch.equal(program(**request)["tokens"], whole)


def test_a_sample_ends_at_its_stop_token_and_is_padded_while_others_go_on():
    model = tiny_model()
    request = tiny_request(model)
    tokens = plain_decoding(model, request, 6)[0]
    place, stop = next(
        (place, int(token))
        for place, token in enumerate(tokens[0])
        if token not in tokens[1] and token not in tokens[0, :place]
    )
    assert place < 5
    loop = DecodeLoop(max_prompt=12, max_new_tokens=6, stop_tokens=(stop,), pad_token=1)
    found = capture_decoder(model, loop)(**request)["tokens"]
    assert found[0].tolist() == tokens[0, : place + 1].tolist() + [1] * (5 - place)
    assert torch.equal(found[1], tokens[1])


def test_the_loop_ends_when_every_sample_has_its_tokens():
    model = tiny_model()
    program = capture_decoder(model, LOOP)
    request = tiny_request(model)
    whole = program(**request)["tokens"]
    found = program(**request, max_new_tokens=[3, 1])["tokens"]
    assert found.tolist() == [whole[0, :3].tolist(), [int(whole[1, 0]), 0, 0]]


def test_sampling_follows_the_probabilities_and_the_seed(tmp_path):
    model = tiny_model(dtype=torch.float32, layers=1)
    loop = DecodeLoop(max_prompt=8, max_new_tokens=1, sampling=Sampling(top_k=10))
    program = capture_decoder(model, loop)
    request = {
        name: item.expand(4000, *item.shape[1:]) for name, item in tiny_request(model, (5,)).items()
    }
    tokens = program(seed=3, **request)["tokens"]
    assert torch.equal(program(seed=3, **request)["tokens"], tokens)
    assert not torch.equal(program(seed=4, **request)["tokens"], tokens)
    logits = plain_decoding(model, tiny_request(model, (5,)), 1)[1][0, 0]
    best = logits.topk(10)
    shares = torch.bincount(tokens[:, 0], minlength=VOCABULARY) / 4000
    expected = torch.zeros(VOCABULARY).scatter(0, best.indices, best.values.softmax(0))
    # Four standard deviations of a share of one half.
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.032)
    program.export(tmp_path / "bundle")
    arrays = {name: item.numpy() for name, item in request.items()}
    again = load(tmp_path / "bundle", threads=1)(seed=3, **arrays)["tokens"]
    assert (again != tokens.numpy()).mean() < 2e-3


def test_low_temperature_and_low_top_p_are_greedy():
    model = tiny_model(dtype=torch.float32)
    loop = DecodeLoop(max_prompt=12, max_new_tokens=6, sampling=Sampling())
    program = capture_decoder(model, loop)
    request = tiny_request(model)
    greedy = plain_decoding(model, request, 6)[0]
    assert torch.equal(program(seed=0, temperature=1e-3, **request)["tokens"], greedy)
    assert torch.equal(program(seed=0, top_p=1e-6, **request)["tokens"], greedy)


def test_without_top_p_there_is_no_such_field():
    model = tiny_model(dtype=torch.float32)
    loop = DecodeLoop(max_prompt=12, max_new_tokens=6, sampling=Sampling(top_p=None))
    program = capture_decoder(model, loop)
    request = tiny_request(model)
    greedy = plain_decoding(model, request, 6)[0]
    assert torch.equal(program(seed=0, temperature=1e-3, **request)["tokens"], greedy)
    drawn = program(seed=0, **request)["tokens"]
    assert not torch.equal(drawn, program(seed=1, **request)["tokens"])
    assert "top_p" not in [item.name for item in program.signature.inputs]
    assert "aten.sort" not in program.graphs["decode"].module.code


class _Eager(TinyDecoder):
    def forward(self, input_ids, position_ids, attention_mask, image_features=None):
        hidden = self.embed(input_ids)
        scores = hidden @ hidden.transpose(1, 2)
        scores = scores.masked_fill(~attention_mask[:, 0], -1e9)
        return self.head(scores.softmax(-1) @ hidden)


class _Windowed(TinyDecoder):
    def forward(self, input_ids, position_ids, attention_mask, image_features=None):
        rows = torch.arange(attention_mask.shape[-1])
        window = (rows[:, None] - rows[None]) < 3
        return super().forward(input_ids, position_ids, attention_mask & window)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_Eager, "found no scaled_dot_product_attention that takes the attention mask"),
        (_Windowed, "found no scaled_dot_product_attention that takes the attention mask"),
    ],
)
def test_refuses_decoders_whose_mask_does_not_reach_attention(kind, message):
    model = tiny_model()
    object.__setattr__(model, "decoder", kind().double())
    with pytest.raises(InputModelError, match=message):
        capture_decoder(model, LOOP)


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        ({"max_prompt": 250}, "= 268 rows, expected at most 256"),
        ({"max_prompt": 2}, "expected at least two more than the 1 text tokens before"),
        ({"stop_tokens": (50,)}, "found 50 in stop_tokens, expected tokens in \\[0, 50\\)"),
        ({"max_new_tokens": 0}, "found max_new_tokens 0, expected a whole number"),
        ({"sampling": {"top_p": 0.0}}, "found top_p 0.0"),
        ({"sampling": {"temperature": 0}}, "found temperature 0"),
    ],
)
def test_refuses_loops_that_do_not_fit(loop, message):
    with pytest.raises(InputModelError, match=message):
        options = {"max_prompt": 12, "max_new_tokens": 6, **loop}
        if "sampling" in options:
            options["sampling"] = Sampling(**options["sampling"])
        capture_decoder(tiny_model(grid=(3, 4)), DecodeLoop(**options))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_ids": torch.full((2, 9), VOCABULARY)}, "expected values in \\[0.0, 49.0\\]"),
        ({"input_ids": torch.zeros(2, 13, dtype=torch.int64)}, "prompt: found 13, expected a size"),
        ({"lengths": torch.tensor([10, 3])}, "lengths: found values in"),
        ({"pixel_values": None}, "'pixel_values' is missing"),
        ({"pixel_values": torch.zeros(2, 3, 12, 12)}, "found shape \\[2, 3, 12, 12\\]"),
        ({"pixel_values": torch.zeros(2, 2, 3, 12, 16)}, "found shape \\[2, 2, 3, 12, 16\\]"),
        ({"max_new_tokens": 7}, "max_new_tokens: found values in \\[7, 7\\]"),
    ],
)
def test_refuses_requests_that_do_not_fit(program_with_image, changed, message):
    model, program = program_with_image
    request = {**tiny_request(model), **changed}
    with pytest.raises(RuntimeInputError, match=message):
        program(**request)


@pytest.fixture(scope="module")
def program_with_image():
    model = tiny_model(grid=(3, 4))
    return model, capture_decoder(model, LOOP)

"""The checks of attach_draft find a draft that is not what it says it is."""

import pytest
import torch

from optimize.capture.from_decoder import capture_decoder
from optimize.ir.decode import DecodeLoop, Sampling
from optimize.passes.attach_draft import AttachDraft
from optimize.passes.drafts import growing
from optimize.recipes.zoo.tiny_decoder import tiny_model, tiny_request

DRAFTS = {
    "one": {"draft": "layers", "draft_length": 3},
    "several": {"draft": "layers", "num_drafts": 3, "draft_length": 2},
    "tree": {"draft": "layers", "tree": ("0", "1", "00")},
}


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float32)


@pytest.fixture(scope="module")
def sampled(model):
    return capture_decoder(model, DecodeLoop(16, 20, sampling=Sampling()))


def surprise(program, model, options):
    item = AttachDraft(**options)
    after = item.rewrite(program).program
    (result,) = item.oracles(program, after, tiny_request(model))
    return result


@pytest.mark.parametrize("options", DRAFTS.values(), ids=DRAFTS)
def test_draws_are_as_the_draft_says(sampled, model, options):
    assert surprise(sampled, model, options).holds


def test_likeliest_tokens_are_no_draws(sampled, model, monkeypatch):
    def likeliest(p, uniforms):
        return p.argmax(-1, keepdim=True).expand(-1, uniforms.shape[1])

    monkeypatch.setattr(growing, "draws", likeliest)
    assert not surprise(sampled, model, DRAFTS["one"]).holds


def test_an_impossible_token_is_found(sampled, model, monkeypatch):
    def constant(p, uniforms):
        return (uniforms * 0).long()

    monkeypatch.setattr(growing, "draws", constant)
    result = surprise(sampled, model, DRAFTS["one"] | {"draft_length": 1})
    assert not result.holds


def test_looked_up_text_is_not_drawn(sampled, model):
    item = AttachDraft(draft_length=2)
    after = item.rewrite(sampled).program
    assert item.oracles(sampled, after, tiny_request(model)) == []


def test_another_text_is_found(model):
    program = capture_decoder(model, DecodeLoop(16, 12))
    item = AttachDraft(draft_length=2)
    request = tiny_request(model)
    after = item.rewrite(program).program
    (right,) = item.oracles(program, after, request)
    other = capture_decoder(tiny_model(seed=3, dtype=torch.float32), DecodeLoop(16, 12))
    (wrong,) = item.oracles(program, item.rewrite(other).program, request)
    assert right.holds and wrong.measured == 2

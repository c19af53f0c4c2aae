"""prune_visual_tokens: its oracles on our own and on transformers models, and what it refuses."""

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch

from optimize.capture.from_decoder import Parts, capture_decoder
from optimize.capture.language_parts import parts_of
from optimize.ir.decode import DecodeLoop
from optimize.ir.graph import shape
from optimize.ir.image_span import image_span
from optimize.ir.spec import check_program
from optimize.measure.cost import graph_flops
from optimize.passes.pipeline import run_passes
from optimize.passes.prune_visual_tokens import PruneVisualTokens
from optimize.passes.visual_check import masked_logits
from optimize.recipes.zoo.language_families import LANGUAGE_FAMILIES, drawn
from optimize.recipes.zoo.tiny_decoder import plain_decoding, tiny_model, tiny_request
from optimize.runtime import load

LOOP = DecodeLoop(max_prompt=12, max_new_tokens=4)
MODELS = ("own", "own-prefix", "own-learned-positions", "llava", "qwen2_vl", "paligemma")
PASSES = {
    "feather-static": PruneVisualTokens(first_layer=2, second_layer=4),
    "feather-official": PruneVisualTokens(first_layer=2, second_layer=4, mode="official"),
    "fastv": PruneVisualTokens(criterion="fastv", first_layer=1, keep_ratio=0.25),
    "fastv-all-keys": PruneVisualTokens("fastv", first_layer=1, keep_ratio=0.25, all_keys=True),
}


@cache
def _program(name):
    """(program, request): float64, six layers, two prompts of different lengths."""
    if name.startswith("own"):
        options = {
            "own-prefix": {"attention": "prefix"},
            "own-learned-positions": {"rotary": False},
        }
        model = tiny_model(grid=(9, 7), layers=6, **options.get(name, {}))
        return capture_decoder(model, LOOP), tiny_request(model)
    make = partial(LANGUAGE_FAMILIES[name], layers=6)
    example = drawn(make, dtype=torch.float64)
    parts = parts_of(example.model, example.image_size, example.prefix)
    image = (parts.channels, *parts.image_size)
    program = capture_decoder(Parts(parts.decoder, parts.vision, image), LOOP)
    torch.manual_seed(1)
    request = {
        "input_ids": torch.randint(3, 80, (2, 9)),
        "lengths": torch.tensor([9, 6]),
        "pixel_values": torch.randn(2, *image),
    }
    return program, request


@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("name", MODELS)
def test_equals_masked_attention(name, kind):
    """Pruned = dense with the dropped tokens masked as keys from each cut on; float64."""
    program, request = _program(name)
    item = PASSES[kind]
    assert item.declines(program) is None
    after = item.rewrite(program).program
    check_program(after)
    results = {result.name: result for result in item.oracles(program, after, request)}
    assert results["pruned_equals_masked"].measured <= 1e-12
    assert results["kept_out_of_order"].measured == 0
    assert not torch.allclose(after(**request)["logits"], program(**request)["logits"], rtol=1e-3)


def test_the_oracle_notices_one_wrong_token():
    program, request = _program("own")
    item = PASSES["feather-static"]
    after = item.rewrite(program).program
    run = after.prepared(request, 0)
    next(run.steps())
    kept = [run.read("kept_1"), run.read("kept_2").copy()]
    others = set(kept[0][0].tolist()) - set(kept[1][0].tolist())
    kept[1][0, 0] = others.pop()
    found = masked_logits(program, request, (2, 4), image_span(program), kept)
    difference = np.abs(found - run.read("logits")).max(1)
    assert difference[0] > 1e-3
    assert difference[1] < 1e-10


@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("name", ["own", "llava", "qwen2_vl"])
def test_identity_changes_no_bit(name, kind):
    program, request = _program(name)
    found = PASSES[kind].identity().rewrite(program).program(**request)
    expected = program(**request)
    assert torch.equal(found["logits"], expected["logits"])
    assert torch.equal(found["tokens"], expected["tokens"])


@pytest.mark.parametrize("kind", ["feather-static", "feather-official"])
def test_decoding_equals_the_masked_model_without_a_cache(kind):
    """Prefill and decode steps with per-layer caches = recomputing everything with the kept set."""
    model = tiny_model(grid=(9, 7), layers=6)
    program, request = capture_decoder(model, LOOP), tiny_request(model)
    item = PASSES[kind]
    after = item.rewrite(program).program
    run = after.prepared(request, 0)
    next(run.steps())
    kept = [run.read(f"kept_{stage}") for stage in (1, 2)]
    found = after(**request)["tokens"]
    for sample in range(2):
        for layer, block in enumerate(model.decoder.blocks):
            if layer >= 2:
                block.forward = _masked_block(block, kept[layer >= 4][sample])
        one = {name: item[sample : sample + 1] for name, item in request.items()}
        assert torch.equal(found[sample], plain_decoding(model, one, 4)[0][0])


def _masked_block(block, numbers):
    """The block, with the tokens that were not kept masked as keys."""

    def forward(hidden, tables, mask):
        keys = torch.ones(mask.shape[-1], dtype=torch.bool)
        keys[1 : 1 + 63] = False
        keys[1 + torch.from_numpy(numbers[numbers >= 0])] = True
        return type(block).forward(block, hidden, tables, mask & keys)

    return forward


def test_with_one_layer_before_the_cut_the_score_follows_the_image_tokens():
    """K1 = 1 scores the embeddings: a permuted image gives a permuted score without rotary."""
    program, request = _program("own")
    item = PruneVisualTokens(first_layer=1, second_layer=2, stride=None, keep_ratio=0.2)
    after = item.rewrite(program).program
    graph, weights = after.graphs["prefill"], after.weights
    features = program.graphs["vision"].run(
        weights, {"pixel_values": request["pixel_values"].float()}
    )
    features = features["image_features"]
    order = torch.randperm(63, generator=torch.Generator().manual_seed(0))
    fields = {
        "input_ids": request["input_ids"],
        "lengths": request["lengths"],
        "max_new_tokens": torch.tensor([1, 1]),
    }
    first = graph.run(weights, {**fields, "image_features": features})["kept_1"]
    second = graph.run(weights, {**fields, "image_features": features[:, order]})["kept_1"]
    for sample in range(2):
        assert set(order[second[sample]].tolist()) == set(first[sample].tolist())


@pytest.mark.parametrize("mode", ["static", "official"])
def test_bundles_keep_the_same_tokens(mode, tmp_path):
    model = tiny_model(grid=(9, 7), layers=6, dtype=torch.float32)
    program, request = capture_decoder(model, LOOP), tiny_request(model)
    after = replace(PASSES["feather-static"], mode=mode).rewrite(program).program
    after.export(tmp_path / "bundle")
    arrays = {name: item.numpy() for name, item in request.items()}
    found, expected = load(tmp_path / "bundle", threads=1)(**arrays), after(**request)
    np.testing.assert_array_equal(found["tokens"], expected["tokens"].numpy())
    np.testing.assert_allclose(found["logits"], expected["logits"].numpy(), rtol=1e-4, atol=1e-4)


def test_later_layers_have_shorter_caches_and_fewer_operations():
    program, _ = _program("own")
    after = PASSES["feather-static"].rewrite(program).program
    rows = {slot.name: slot.shape[2] for slot in after.loop.slots if slot.name.startswith("key_")}
    whole = 12 + 63 + 4
    # 63 tokens on a grid of 9 x 7: 3 x 3 of the grid and 30 % of the other 54; then 9 % of 25.
    first, second = whole - 63 + 25, whole - 63 + 2
    assert list(rows.values()) == [whole, whole, first, first, second, second]
    assert shape(after.graphs["decode"].node("key_5"))[2] == second
    assert graph_flops(after.graphs["prefill"]) < 0.62 * graph_flops(program.graphs["prefill"])


def test_external_importance_replaces_the_score():
    program, request = _program("own")
    item = PruneVisualTokens("external", first_layer=2, second_layer=4, stride=None, keep_ratio=0.5)
    after = item.rewrite(program).program
    importance = torch.rand(2, 63, generator=torch.Generator().manual_seed(0))
    kept = after.watch(("kept_1", "kept_2"), **request, importance=importance)
    for name, count in (("kept_1", 31), ("kept_2", 7)):
        best = importance.topk(count)[1].sort()[0]
        assert kept[name][0].tolist() == best.tolist()


def test_the_pipeline_runs_oracles_and_identity():
    program, request = _program("own")
    arrays = {name: item.numpy() for name, item in request.items()}
    after = run_passes(program, [PASSES["feather-static"]], calibration=[{**arrays, "seed": 0}])
    (record,) = after.history
    assert set(record.oracles) == {"pruned_equals_masked", "kept_out_of_order", "identity"}
    assert record.flops_after < record.flops_before
    assert record.sites == ("prefill layer 2", "prefill layer 4")


def test_notes_a_decoder_without_rotary_positions():
    program, _ = _program("own-learned-positions")
    details = PASSES["feather-static"].rewrite(program).details
    assert details["note"].startswith("the decoder has no rotary positions")
    assert "note" not in PASSES["feather-static"].rewrite(_program("own")[0]).details


def test_default_layers_are_in_proportion_to_the_published_ones():
    program, _ = _program("own")
    assert PruneVisualTokens().rewrite(program).details["cuts"] == [2, 3]
    assert PruneVisualTokens("fastv").rewrite(program).details["cuts"] == [1]
    assert PruneVisualTokens().cuts(32) == (8, 16)
    assert PruneVisualTokens("fastv").cuts(32) == (3,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_ratio": 0.0}, "keep_ratio: found 0.0, expected a number in \\(0, 1\\]"),
        ({"keep_ratio": 1.5}, "keep_ratio: found 1.5"),
        ({"first_layer": 4, "second_layer": 4}, "second_layer: found 4, expected more than"),
        ({"first_layer": 0}, "first_layer: found 0, expected at least 1"),
        ({"stride": 0}, "stride: found 0"),
        ({"criterion": "best"}, "criterion: found 'best'"),
        ({"all_keys": True}, "all_keys: found true for criterion 'feather'"),
        ({"mode": "fast"}, "mode: found 'fast'"),
        ({"criterion": "fastv", "second_layer": 3}, "which has a single stage"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        PruneVisualTokens(**options)


def test_declines_cuts_beyond_the_last_layer():
    reason = PruneVisualTokens(first_layer=2, second_layer=6).declines(_program("own")[0])
    assert "found cuts before layers 2, 6, expected them ascending and below 6" in reason


def test_declines_prompts_without_image():
    program = capture_decoder(tiny_model(), LOOP)
    assert PruneVisualTokens().declines(program) == "the prompts have no image"


def test_declines_what_was_pruned_already():
    program = PASSES["feather-static"].rewrite(_program("own")[0]).program
    assert PASSES["fastv"].declines(program) == "visual tokens were pruned already"


class _Split(torch.nn.Module):
    """Puts half of the image before the first text token and half behind it."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder
        for name in ("image_offset", "image_tokens", "attention", "max_positions"):
            setattr(self, name, getattr(decoder, name))
        self.position_shift, self.vocabulary = 0, decoder.vocabulary

    def prompt_positions(self, length):
        return self.decoder.prompt_positions(length)

    def forward(self, input_ids, position_ids, attention_mask, image_features=None):
        decoder, hidden = self.decoder, self.decoder.embed(input_ids)
        if image_features is not None:
            pieces = [image_features[:, :30], hidden[:, :1], image_features[:, 30:], hidden[:, 1:]]
            hidden = torch.cat(pieces, 1)
        for block in decoder.blocks:
            hidden = block(hidden, None, attention_mask)
        return decoder.head(decoder.norm(hidden))


def test_declines_an_image_in_pieces():
    model = tiny_model(grid=(9, 7), layers=6)
    program = capture_decoder(Parts(_Split(model.decoder), model.vision, model.image_shape), LOOP)
    reason = PASSES["feather-static"].declines(program)
    assert "the image stands in the sequence in 2 pieces of 30, 33 rows" in reason


class _Shuffled(torch.nn.Module):
    def __init__(self, vision):
        super().__init__()
        self.vision = vision

    def forward(self, pixel_values):
        return self.vision(pixel_values)[:, torch.arange(62, -1, -1)]


def test_declines_a_grid_that_cannot_be_read_unless_no_stride_is_asked_for():
    model = tiny_model(grid=(9, 7), layers=6)
    parts = Parts(model.decoder, _Shuffled(model.vision), model.image_shape)
    program = capture_decoder(parts, LOOP)
    reason = PASSES["feather-static"].declines(program)
    assert "do not come from one grid of rows and columns" in reason
    item = replace(PASSES["feather-static"], stride=None)
    assert item.declines(program) is None
    after = item.rewrite(program).program
    assert item.oracles(program, after, tiny_request(model))[0].holds

"""attach_draft: texts are the target's, whatever drafts; in PyTorch and in ONNX Runtime."""

import numpy as np
import pytest
import torch

from optimize.capture.from_decoder import capture_decoder
from optimize.ir.decode import DecodeLoop
from optimize.ir.draft_tree import CHIMERA_TREE
from optimize.ir.spec import check_program
from optimize.passes.attach_draft import AttachDraft
from optimize.passes.drafts.catalog import register_draft
from optimize.passes.drafts.chimera import Chimera, ChimeraConfig
from optimize.passes.drafts.chimera_file import save_chimera
from optimize.passes.pass_base import Declined
from optimize.recipes.zoo.tiny_decoder import VOCABULARY, tiny_model, tiny_request
from optimize.runtime import load

LOOP = DecodeLoop(max_prompt=16, max_new_tokens=20, stop_tokens=(7,))
TREE = ("0", "1", "2", "00", "01", "10", "000", "0000")


def zeroed(model):
    """The model with layers 2 and 3 that add nothing: its first two layers say the same."""
    for block in model.decoder.blocks[2:]:
        for linear in (block.out, block.down):
            torch.nn.init.zeros_(linear.weight)
    return model


@pytest.fixture(scope="module")
def target():
    return zeroed(tiny_model(dtype=torch.float32))


@pytest.fixture(scope="module")
def program(target):
    return capture_decoder(target, LOOP)


@pytest.fixture(scope="module")
def request_(target):
    return tiny_request(target, (9, 6, 16, 2))


@pytest.fixture(scope="module")
def expected(program, request_):
    return program(**request_)["tokens"]


@pytest.fixture(scope="module", autouse=True)
def drafts(target, tmp_path_factory):
    """Drafts by name: one that knows nothing, one that says what the target does."""
    register_draft(
        "other", capture_decoder(tiny_model(layers=1, seed=5, dtype=torch.float32), LOOP)
    )
    perfect = tiny_model(layers=2, dtype=torch.float32)
    state = target.decoder.state_dict()
    perfect.decoder.load_state_dict({name: state[name] for name in perfect.decoder.state_dict()})
    register_draft("perfect", capture_decoder(perfect, LOOP))
    torch.manual_seed(0)
    decoder = target.decoder
    config = ChimeraConfig(width=32, vocabulary=VOCABULARY, attention_heads=4, mlp_width=48)
    path = tmp_path_factory.mktemp("chimera") / "untrained.safetensors"
    save_chimera(Chimera(config, decoder.embed.weight, decoder.head.weight), path)
    register_chimera["path"] = str(path)


register_chimera = {}


def attached(program, options):
    if options.get("draft") == "chimera":
        options = {**options, "source": register_chimera["path"]}
    item = AttachDraft(**options)
    assert item.declines(program) is None
    after = item.rewrite(program).program
    check_program(after, "attach_draft")
    return after


GREEDY = {
    "lookup": {"draft_length": 4},
    "lookup of one token": {"draft_length": 1, "ngram": 1},
    "layers": {"draft": "layers", "draft_length": 3},
    "layers, tree": {"draft": "layers", "layers": 3, "tree": TREE},
    "layers, published tree": {"draft": "layers", "tree": "chimera"},
    "another model": {"draft": "model", "source": "other", "draft_length": 3},
    "another model, several": {
        "draft": "model",
        "source": "other",
        "draft_length": 2,
        "num_drafts": 3,
    },
    "perfect model": {"draft": "model", "source": "perfect", "draft_length": 5},
    "chimera": {"draft": "chimera", "draft_length": 4},
    "chimera, tree": {"draft": "chimera", "tree": TREE},
    "chimera, published tree": {"draft": "chimera", "tree": "chimera"},
}


@pytest.mark.parametrize("options", GREEDY.values(), ids=GREEDY)
def test_greedy_text_is_the_targets(program, request_, expected, options, tmp_path):
    after = attached(program, options)
    results = after(**request_)
    assert torch.equal(results["tokens"], expected)
    after.export(tmp_path / "bundle")
    with load(tmp_path / "bundle", threads=1) as session:
        found = session(**{name: value.numpy() for name, value in request_.items()})
        np.testing.assert_array_equal(found["tokens"], expected.numpy())
        np.testing.assert_array_equal(found["accepted"], results["accepted"].numpy())


def test_a_perfect_draft_is_kept_whole(program, request_):
    after = attached(program, GREEDY["perfect model"])
    accepted = after(**request_)["accepted"]
    # The last round of a text is cut short by its end.
    for row in accepted.tolist():
        kept = [count for count in row if count >= 0]
        assert all(count == 5 for count in kept[:-1])


def test_a_stop_token_ends_a_text_within_a_run(target, program, request_, expected):
    stops = expected[0, 4].item(), expected[2, 9].item()
    loop = DecodeLoop(max_prompt=16, max_new_tokens=20, stop_tokens=stops, pad_token=1)
    plain = capture_decoder(target, loop)
    after = attached(plain, GREEDY["layers"])
    assert torch.equal(after(**request_)["tokens"], plain(**request_)["tokens"])


@pytest.mark.parametrize("most", [1, 2, 5])
def test_answers_may_be_shorter(program, request_, expected, most):
    after = attached(program, GREEDY["perfect model"])
    found = after(**request_, max_new_tokens=most)["tokens"]
    assert torch.equal(found, program(**request_, max_new_tokens=most)["tokens"])


def test_samples_do_not_depend_on_their_batch(program, request_, expected):
    after = attached(program, GREEDY["layers, tree"])
    for sample in range(4):
        alone = {name: value[sample : sample + 1] for name, value in request_.items()}
        found = after(**alone)["tokens"][0]
        assert torch.equal(found, expected[sample, : len(found)])


def test_fit_chooses_a_length_or_declines(program, request_):
    calibration = [{**request_, "seed": 0}]
    fitted = AttachDraft("model", "perfect").fit(program, calibration)
    assert fitted.item.draft_length == fitted.details["draft_length"]
    assert fitted.details["expected_gain"] > 1
    with pytest.raises(Declined, match="does not pay: .* too little is kept"):
        AttachDraft("model", "other").fit(program, calibration)


def test_streams_runs(program, request_, expected, tmp_path):
    attached(program, GREEDY["perfect model"]).export(tmp_path / "bundle")
    with load(tmp_path / "bundle") as session:
        alone = {name: value[:1].numpy() for name, value in request_.items()}
        parts = list(session.stream(**alone))
    assert len(parts) < expected.shape[1]
    np.testing.assert_array_equal(
        np.concatenate(parts, 1), expected[:1, : sum(part.shape[1] for part in parts)].numpy()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft": "oracle"}, "draft: found 'oracle', expected one of"),
        ({"draft": "model"}, "source: found None for draft 'model'"),
        ({"source": "x"}, "source: found 'x' for draft 'lookup'"),
        ({"draft_length": 0}, "draft_length: found 0, expected one in"),
        ({"num_drafts": 2}, "draft 'lookup': found several drafts"),
        ({"draft": "layers", "tree": ("00",)}, "found path \\(0, 0\\) without"),
        ({"draft": "layers", "tree": "chimera", "draft_length": 2}, "expected it alone"),
        ({"draft": "layers", "num_drafts": 100, "draft_length": 9}, "more than 256 rows"),
        ({"verifier": "judge"}, "judge: found None for verifier 'judge'"),
        ({"verifier": "judge", "judge": "x"}, "lossy: expected true"),
        ({"lossy": True}, "lossy: expected true for verifier 'judge'"),
        ({"layers": 2}, "layers: found 2 for draft 'lookup'"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        AttachDraft(**options)


def test_declines_with_a_reason(program, tmp_path):
    def reason(**options):
        return AttachDraft(**options).declines(program)

    small = tiny_model(layers=1, dtype=torch.float32)
    register_draft("large", capture_decoder(tiny_model(layers=5, dtype=torch.float32), LOOP))
    register_draft("short", capture_decoder(small, DecodeLoop(max_prompt=8, max_new_tokens=4)))
    assert "expected fewer than the target's" in reason(draft="model", source="large")
    assert "texts of 12 tokens, expected at least 36" in reason(draft="model", source="short")
    assert "expected fewer than max_new_tokens 20" in reason(draft_length=20)
    assert "found verifier 'exact' for the likeliest tokens" in reason(verifier="exact")
    assert "found 4 of a decoder of 4" in reason(draft="layers", layers=4)
    missing = str(tmp_path / "nothing.safetensors")
    assert "nothing.safetensors: found no" in reason(draft="chimera", source=missing)
    after = attached(program, GREEDY["lookup"])
    assert AttachDraft().declines(after) == "a draft is attached already"


def test_the_published_tree_has_its_counts():
    assert CHIMERA_TREE.size == 26 and CHIMERA_TREE.depth == 5

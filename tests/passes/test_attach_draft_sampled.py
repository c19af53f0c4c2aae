"""attach_draft, tokens drawn: texts of every verifier have the target's distribution.

20 000 texts of four tokens from ONNX Runtime against the enumerated law of the 81 possible ones,
behind two prompts in one batch. Drafts that are drawn in another way than they say must fail.
"""

import numpy as np
import pytest

from optimize.ir.spec import check_program
from optimize.passes.attach_draft import AttachDraft
from optimize.passes.drafts import growing
from optimize.passes.drafts.catalog import register_draft
from optimize.runtime import load
from tests.passes.drawn_texts import (
    SIGNIFICANCE,
    captured,
    copies,
    drawn,
    laws,
    pair,
    worst_p_value,
)

pytestmark = pytest.mark.slow

BATCH, SEEDS, FEW = 500, 40, 10
MODEL = {"draft": "model", "source": "half right"}
CHAIN = {**MODEL, "draft_length": 3}
SEVERAL = {**MODEL, "draft_length": 2, "num_drafts": 2}
TREE = {**MODEL, "tree": ("0", "1", "00", "01", "000")}
LOSSLESS = {
    "exact": CHAIN,
    "block": {**CHAIN, "verifier": "block"},
    "kseq": SEVERAL,
    "recursive": TREE,
}


@pytest.fixture(scope="module")
def models():
    return pair()


@pytest.fixture(scope="module")
def program(models):
    target, draft = models
    register_draft("half right", captured(draft))
    return captured(target)


@pytest.fixture(scope="module")
def expected(models):
    found = laws(models[0])
    assert all(len(law) == 81 and sum(law.values()) == pytest.approx(1) for law in found)
    return found


def texts(program, models, folder, options, seeds):
    item = AttachDraft(**options)
    assert item.declines(program) is None
    after = item.rewrite(program).program
    check_program(after, "attach_draft")
    after.export(folder / "bundle")
    with load(folder / "bundle", threads=1) as session:
        found = drawn(session, models[0], BATCH, seeds)
        request = copies(models[0], BATCH)
        again = after(**request, seed=0)["tokens"].numpy()
    np.testing.assert_array_equal(np.stack(found.texts, 1).reshape(-1, 4)[:BATCH], again)
    return found


@pytest.mark.parametrize("name", LOSSLESS)
def test_texts_have_the_targets_distribution(program, models, expected, name, tmp_path):
    found = texts(program, models, tmp_path, LOSSLESS[name], SEEDS)
    assert sum(map(len, found.texts)) == 20_000
    # Rejections and acceptances both are many, so that a fault of either is seen.
    assert 0.3 < found.acceptance_rate < 0.8
    assert worst_p_value(found, expected) > SIGNIFICANCE


def likeliest(p, uniforms):
    return p.argmax(-1, keepdim=True).expand(-1, uniforms.shape[1])


def sharper(p, uniforms, right=growing.draws):
    return right(p**2 / (p**2).sum(-1, keepdim=True), uniforms)


def alike(p, uniforms, right=growing.draws):
    return right(p, uniforms[:, :1]).expand(-1, uniforms.shape[1])


WRONG = {
    "exact, likeliest tokens": (likeliest, CHAIN),
    "exact, sharper draws": (sharper, CHAIN),
    "block, sharper draws": (sharper, LOSSLESS["block"]),
    "kseq, drafts that are alike": (alike, SEVERAL),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_drafts_not_drawn_as_they_say_are_noticed(
    program, models, expected, wrong, tmp_path, monkeypatch
):
    draw, options = WRONG[wrong]
    monkeypatch.setattr(growing, "draws", draw)
    found = texts(program, models, tmp_path, options, FEW)
    assert worst_p_value(found, expected) < SIGNIFICANCE


def test_texts_with_replacement_in_a_tree_are_noticed(
    program, models, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(growing, "draws_without_replacement", growing.draws)
    found = texts(program, models, tmp_path, TREE, FEW)
    assert worst_p_value(found, expected) < SIGNIFICANCE

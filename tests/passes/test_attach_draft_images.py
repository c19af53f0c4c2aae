"""attach_draft on prompts with an image, whole and pruned."""

import pytest
import torch

from optimize.capture.from_decoder import capture_decoder
from optimize.ir.decode import DecodeLoop
from optimize.ir.spec import check_program
from optimize.passes.attach_draft import AttachDraft
from optimize.passes.drafts.catalog import register_draft
from optimize.passes.prune_visual_tokens import PruneVisualTokens
from optimize.recipes.zoo.tiny_decoder import tiny_model, tiny_request

LOOP = DecodeLoop(max_prompt=12, max_new_tokens=14)
DRAFTS = {
    "lookup": {"draft_length": 3},
    "model": {"draft": "model", "source": "text only", "draft_length": 3},
    "tree": {"draft": "model", "source": "text only", "tree": ("0", "1", "00", "10")},
}


@pytest.fixture(scope="module")
def model():
    return tiny_model((4, 4), dtype=torch.float32)


@pytest.fixture(scope="module")
def program(model):
    register_draft("text only", capture_decoder(tiny_model(layers=1, dtype=torch.float32), LOOP))
    return capture_decoder(model, LOOP)


@pytest.mark.parametrize("options", DRAFTS.values(), ids=DRAFTS)
@pytest.mark.parametrize("is_pruned", [False, True])
def test_text_is_that_of_the_program_before(program, model, options, is_pruned):
    if is_pruned:
        program = PruneVisualTokens(stride=2).rewrite(program).program
    item = AttachDraft(**options)
    assert item.declines(program) is None
    after = item.rewrite(program).program
    check_program(after, "attach_draft")
    request = tiny_request(model)
    assert torch.equal(after(**request)["tokens"], program(**request)["tokens"])


def test_the_targets_layers_read_text_only(program):
    reason = AttachDraft("layers", draft_length=2).declines(program)
    assert "these prompts have an image" in reason

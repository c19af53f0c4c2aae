"""`optimize inspect` of models that fill in masked text."""

import json

import pytest

from optimize.capture.from_masked import capture_masked_model
from optimize.cli import run_command
from optimize.commands.inspect import describe_program
from optimize.commands.language import unmasking_lines
from optimize.ir.decode import Sampling
from optimize.ir.program import Program
from optimize.ir.unmask import UnmaskLoop
from optimize.passes.commit_early import CommitEarly
from optimize.passes.first_hitting import FirstHitting
from optimize.recipes.zoo.masked_language_model import MaskedLanguageModel


@pytest.fixture(scope="module")
def program() -> Program:
    """Two blocks of four tokens, drawn, filled in at random."""
    model = MaskedLanguageModel(10, dim=8, block_count=2, head_count=2, hidden=8)
    loop = UnmaskLoop(
        mask_id=10,
        length=8,
        block_length=4,
        remasking="random",
        sampling=Sampling(0.5, top_p=None),
        max_prompt=0,
    )
    return capture_masked_model(model, loop=loop)


def test_says_what_a_masked_model_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["inspect", "zoo:long-sums"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "masked-diffusion language model: 4 layers, 4 heads of width 24, vocabulary 14, mask 14, "
        "does not look at the time"
    ) in text
    assert (
        "text: 24 tokens in 3 blocks of 8, at most 24 calls; remasking low_confidence; "
        "the likeliest tokens"
    ) in text
    assert "prompt: 1 to 22 tokens, all of a request of one length" in text
    assert "prompts are put into '{prompt}'" in text


def test_data_says_what_passes_made_of_the_loop(program: Program) -> None:
    data = describe_program(FirstHitting(calls=2).rewrite(program).program)
    assert data["language"] is None
    found = json.loads(json.dumps(data["unmasking"]))
    assert (found["layers"], found["heads"], found["head_width"]) == (2, 2, 4)
    assert (found["calls"], found["reveals_per_call"]) == (4, 2)
    assert (found["temperature"], found["max_prompt"], found["template"]) == (0.5, 0, None)
    _, text, prompt = unmasking_lines(found)
    assert "tokens drawn at temperature 0.5" in text
    assert text.endswith("first hitting, at most 2 reveals per call")
    assert prompt == "prompt: none"


def test_early_commits_are_named(program: Program) -> None:
    data = describe_program(CommitEarly().rewrite(program).program)["unmasking"]
    assert data["commits_early"] and data["reveals_per_call"] is None
    assert unmasking_lines(data)[1].endswith("; commits early")
